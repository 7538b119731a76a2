"""Policies as ordinary Hugging Face folders, written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.errors import InputError
from dpr_lightning.policies.adapters import describe_base, is_adapter
from dpr_lightning.policies.attention_choice import save_attention
from dpr_lightning.policies.base_files import keep_base_files
from dpr_lightning.policies.merging import has_adapters, merged_weights, untied_configuration, untied_names
from dpr_lightning.policies.probe import probe, probe_tokens
from dpr_lightning.policies.saved_check import LARGEST_REREAD, check_adapter, check_policy, check_weights
from dpr_lightning.policies.sharding import is_sharded, tensors_of_state, weight_bytes
from dpr_lightning.policies.spec import PolicySpec


def save_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    spec: PolicySpec,
    *,
    merge: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    check: bool = True,
) -> Path:
    """Write ``model`` and ``tokenizer`` to ``folder``: a full model, or the active adapter when ``model`` has one.

    The folder's settings are those of its base, but for what was changed. Before anything is replaced, the files are
    compared with the weights in memory; a policy of up to 1 GiB is also loaded from them, and must say the same.

    Args:
        model: from :func:`build_policy`.
        tokenizer: saved beside it.
        folder: replaced only once the new one stands.
        spec: the description that ``model`` was built from; kept beside the weights so that an adapter finds its base.
        merge: write an adapter's policy as a full model; ``model`` stays as it is, to the bit.
        weights: of a model in shards, from :func:`gathered_weights`; None: the model's own, as ever with ``merge``.
        check: whether to compare what was written.

    Raises:
        InputError: it differs from the policy in memory, or cannot be written.
    """
    folder = Path(folder)
    loads_again = check and not is_sharded(model) and weight_bytes(model) <= LARGEST_REREAD
    expected = probe(model, probe_tokens(model)) if loads_again else None
    state = {} if weights is None else {"state_dict": dict(weights)}
    with whole_folder(folder) as unfinished:
        if merge and has_adapters(model):
            with merged_weights(model) as (inside, merged):
                untied = bool(untied_names(inside, merged))
                with untied_configuration(inside) if untied else nullcontext():
                    inside.save_pretrained(unfinished, state_dict=dict(merged))  # type: ignore[operator]
                if check:
                    check_weights(unfinished, merged)
        elif hasattr(model, "peft_config"):
            selected = [model.active_adapter]
            model.save_pretrained(unfinished, selected_adapters=selected, **state)  # type: ignore[operator]
            nested = unfinished / str(model.active_adapter)
            if nested.is_dir():
                for path in nested.iterdir():
                    path.rename(unfinished / path.name)
                nested.rmdir()
        else:
            model.save_pretrained(unfinished, **state)  # type: ignore[operator]
            if check:
                check_weights(unfinished, weights if weights is not None else tensors_of_state(model))
        (unfinished / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(unfinished)
        if is_adapter(unfinished):
            describe_base(spec, unfinished, folder)
            model.generation_config.save_pretrained(unfinished)  # type: ignore[operator, union-attr]
            if check:
                check_adapter(unfinished, model, weights)
        keep_base_files(unfinished, spec)
        save_attention(unfinished, spec)
        if expected is not None:
            check_policy(unfinished, model, spec, expected)
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: the disk is full or the place may not be written.
    """
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield unfinished
        hidden = os.umask(0)
        os.umask(hidden)
        for path in (unfinished, *unfinished.rglob("*")):
            # Temporary folders, and what some writers put in them, are closed to everybody else.
            path.chmod((0o777 if path.is_dir() else 0o666) & ~hidden)
            if path.is_file():
                flush(path)
        if folder.exists():
            previous = unfinished.with_name(unfinished.name + ".previous")
            folder.rename(previous)
            unfinished.rename(folder)
            shutil.rmtree(previous)
        else:
            unfinished.rename(folder)
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk as an error of its own.
        if isinstance(error, SafetensorError) and "IoError" not in str(error) and "os error" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"Could not write {folder}: {reason}. Nothing is left half-written there; free some space "
            "or choose another folder."
        ) from error
    finally:
        if unfinished is not None and unfinished.exists():
            shutil.rmtree(unfinished, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
