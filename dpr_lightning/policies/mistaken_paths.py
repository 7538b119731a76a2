"""Paths that are named where a policy's folder is expected, and what to name instead."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from dpr_lightning.policies.sources import ADAPTER_CONFIG, is_missing_path

CONFIG = "config.json"
_LISTED = 6
"""Most policies of a folder that a message names."""
_DEPTH = 3
"""Levels of folders in which policies are searched: a run has them in sft/policies/."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_LIGHTNING = "{0!s} is a checkpoint of Lightning, from which a run resumes, and no policy."
_EXPORT = (
    "Name a folder that the run saved its policy in (policies/), or make one: `dpr export --source BASE "
    "--checkpoint {0!s} --output FOLDER`, BASE being what the run trained."
)
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "*.index.json")


def not_a_policy(source: str) -> str | None:
    """Why ``source``, which could not be loaded, is no policy, and what to name instead; None where it may be one."""
    path = Path(source)
    if path.is_dir():
        return _folder_of_policies(path) or _lightning_folder(path) or _sharded_weights(path)
    if path.is_file():
        return _file(path)
    around = path.parent.iterdir() if path.parent.is_dir() else ()
    folders = {folder.name: folder for folder in around if _has_config(folder)}
    near = get_close_matches(path.name, folders, n=1)
    if not near and not is_missing_path(source):
        return None  # perhaps a hub id
    meant = f"Did you mean {folders[near[0]]}?" if near else "Name a folder with config.json, or a hub id."
    return f"There is no folder {source!r}. {meant}"


def _folder_of_policies(path: Path) -> str | None:
    """Of the folder of a run, or of its checkpoints."""
    if _has_config(path):
        return None
    inner = sorted(_policies_in(path, _DEPTH), key=_natural)
    if not inner:
        return None
    listed = ", ".join(map(str, inner[:_LISTED])) + ", …" * (len(inner) > _LISTED)
    return f"{str(path)!r} is no policy, but a folder of them: {listed}. Name one of these."


def _policies_in(folder: Path, depth: int) -> Iterator[Path]:
    for inner in folder.iterdir():
        if inner.is_dir() and inner.name[0] != ".":
            if _has_config(inner):
                yield inner
            elif depth > 1:
                yield from _policies_in(inner, depth - 1)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts checkpoint-2 before checkpoint-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _file(path: Path) -> str:
    """Of a file."""
    if path.suffix == ".ckpt":
        return f"{_LIGHTNING.format(path)} {_EXPORT.format(path)}"
    if path.suffix in _WEIGHTS:
        folder = path.parent
        instead = f"its folder, {folder}" if _has_config(folder) else "a folder with config.json and the tokenizer too"
        return f"{str(path)!r} is a file of weights alone. Name {instead}."
    return f"{str(path)!r} is a file, and a policy is a folder with config.json, weights and a tokenizer. Name that."


def _lightning_folder(path: Path) -> str | None:
    """Of a checkpoint that a strategy of Lightning wrote in shards."""
    names = {inner.name for inner in path.iterdir()}
    if {"latest", "checkpoint"} <= names or {".metadata", "meta.pt"} <= names:
        return f"{_LIGHTNING.format(path)} Name a folder that the run saved its policy in (policies/)."
    return None


def _sharded_weights(path: Path) -> str | None:
    """Of a checkpoint of transformers' Trainer whose weights are in shards of its ranks."""
    if any(next(path.glob(pattern), None) is not None for pattern in _WEIGHT_FILES):
        return None
    if any(path.glob("global_step*")):
        return (
            f"{str(path)!r} has its weights in the shards of DeepSpeed. Bring them together in that folder: `python "
            "zero_to_fp32.py . . --safe_serialization`; or train with `stage3_gather_16bit_weights_on_model_save`."
        )
    shards = next(path.glob("pytorch_model_fsdp_*"), None)
    if shards is not None:
        return (
            f"{str(path)!r} has its weights in the shards of FSDP. Bring them together: `accelerate merge-weights "
            f"{shards} {path}`."
        )
    return None


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))
