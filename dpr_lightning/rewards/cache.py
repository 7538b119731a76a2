"""A cache of tensors on disk, under a key of everything that they depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_folder
from dpr_lightning.policies.adapters import base_of, is_adapter

KEY_FILE, TENSOR_FILE = "key.json", "tensors.safetensors"


def content_hash(path: str | Path, files: Sequence[Path] | None = None) -> str:
    """SHA-256 over names and contents of a file, or of the files of a folder; of the name for anything else.

    Args:
        path: of the file or folder.
        files: of the folder, sorted; None: all.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if files is None:
        files = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
    if not files:
        digest.update(str(path).encode())
    for part in files:
        digest.update(part.name.encode())
        with part.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def policy_hash(folder: str | Path) -> str:
    """Hash of a policy's folder; for an adapter, also of its base."""
    digest = content_hash(folder)
    if not is_adapter(folder):
        return digest
    base = base_of(folder)
    return hashlib.sha256(f"{digest} {content_hash(base.source or '')} {base.gguf_file}".encode()).hexdigest()


def load_cached(folder: str | Path, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The tensors saved in ``folder``; None where there are none yet.

    Raises:
        InputError: they were saved under another key (the differing entries are named), or the files are damaged.
    """
    folder = Path(folder)
    if not (folder / KEY_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} holds files but no {KEY_FILE}: it is not a cache. Choose an empty folder.")
        return None
    try:
        saved = json.loads((folder / KEY_FILE).read_text())
        checksum, saved_key = saved["sha256"], saved["key"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / KEY_FILE} is damaged; delete {folder} and run again.") from error
    expected = json.loads(json.dumps(key))
    if saved_key != expected:
        different = sorted(name for name in {*expected, *saved_key} if expected.get(name) != saved_key.get(name))
        lines = [
            f"  {name}: {_short(saved_key.get(name))} kept, {_short(expected.get(name))} now" for name in different
        ]
        raise InputError(
            f"The cache in {folder} was made from something else:\n" + "\n".join(lines) + "\nDelete the folder, or "
            "name another one, to compute it again."
        )
    if content_hash(folder / TENSOR_FILE) != checksum:
        raise InputError(f"{folder / TENSOR_FILE} does not match its checksum; delete {folder} and run again.")
    return load_file(folder / TENSOR_FILE)


def store_cached(folder: str | Path, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Save ``tensors`` atomically.

    Raises:
        InputError: the disk is full or the folder may not be written; nothing is left half-written.
    """
    with whole_folder(Path(folder)) as unfinished:
        save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished / TENSOR_FILE)
        saved = {"key": dict(key), "sha256": content_hash(unfinished / TENSOR_FILE)}
        (unfinished / KEY_FILE).write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
