"""Loads weights from a Lightning checkpoint: a file, or a folder with a shard of each rank."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader

from dpr_lightning.engine import has_adapters
from dpr_lightning.errors import InputError, counted, last_line
from dpr_lightning.policies.unreadable_files import UNREADABLE, complaint

_ADAPTER_NAMES = (re.compile(r"\.\w+$"), re.compile(r"\.\w+(?=\.\w+$)"))
"""Positions of an adapter's name in peft's names of weights: last, or before ``weight``."""
_ZERO_TAG = "checkpoint"
"""Subfolder of a Lightning checkpoint with DeepSpeed's shards."""


def is_in_shards(checkpoint: str | Path) -> bool:
    """Whether a Lightning checkpoint is a folder with a shard of each rank, DeepSpeed's or FSDP2's."""
    return (Path(checkpoint) / _ZERO_TAG).is_dir() or (Path(checkpoint) / ".metadata").is_file()


def _lightning_state(checkpoint: Path) -> dict[str, Any]:
    """The weights of a LightningModule, from a file or from shards (of ZeRO: the optimizer's float32 weights)."""
    if is_in_shards(checkpoint):
        return _gathered(checkpoint)
    if not checkpoint.is_file():
        problem = "holds no shards of DeepSpeed's or FSDP2's" if checkpoint.is_dir() else "does not exist"
        raise InputError(f"The Lightning checkpoint {str(checkpoint)!r} {problem}.")
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except UNREADABLE as error:
        raise InputError(
            f"{str(checkpoint)!r} cannot be read as a Lightning checkpoint: {complaint(error)} It is damaged, of "
            "another kind, or holds more than tensors, numbers and text."
        ) from error
    return state


def _gathered(checkpoint: Path) -> dict[str, Any]:
    if (checkpoint / _ZERO_TAG).is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        weights: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=_ZERO_TAG)
        return weights
    content: dict[str, Any] = {}
    reader = FileSystemReader(checkpoint)
    state_dict_loader._load_state_dict(
        content, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(keys={"state_dict"}), no_dist=True
    )
    state: dict[str, Any] = content["state_dict"]
    return state


def load_lightning_weights(model: nn.Module, checkpoint: str) -> None:
    """Load the policy's weights from a LightningModule's checkpoint into ``model``.

    Raises:
        InputError: there is no such checkpoint, it cannot be read, or it is of another architecture.
    """
    content = _lightning_state(Path(checkpoint))
    weights = {name.removeprefix("policy."): value for name, value in content.items() if name.startswith("policy.")}
    # Such a checkpoint includes frozen adapters that shared the trained one's base; they are not part of this policy.
    names = {name for name, _ in model.named_parameters()}
    weights = {
        name: value
        for name, value in weights.items()
        if name in names or not any(pattern.sub(".default", name) in names for pattern in _ADAPTER_NAMES)
    }
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"The checkpoint {checkpoint!r} does not fit this policy: {last_line(error)}") from error
    adapter = {name for name, weight in model.named_parameters() if weight.requires_grad and has_adapters(model)}
    trained = [name for name in missing if name in adapter or not weights]
    if unexpected or trained or not weights:
        raise InputError(
            f"The checkpoint {checkpoint!r} holds another architecture: {counted(len(missing), 'weight')} missing and "
            f"{len(unexpected)} unknown (first: {(unexpected or missing or ['none'])[0]})."
        )
