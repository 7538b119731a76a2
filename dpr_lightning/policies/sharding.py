"""Models too large for one rank: built in shards, asked in shards, and brought together to be saved."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dpr_lightning.engine.host_memory import release_freed_memory

log = logging.getLogger(__name__)
Weights = Literal["auto", "whole", "shards"]
"""Where weights lie while a model is asked: whole on every rank, in shards, or whichever their size suggests."""
LARGEST_WHOLE = 1 / 3
"""The share of a device's memory that ``auto`` lets weights take that every rank holds whole."""
_config: ContextVar[Mapping[str, Any] | None] = ContextVar("zero3_config", default=None)


@contextmanager
def build_sharded(config: Mapping[str, Any]) -> Iterator[None]:
    """Within, policies in training are built in shards, as the DeepSpeed ``config`` says."""
    token = _config.set(config)
    try:
        yield
    finally:
        _config.reset(token)


class _Config:
    """What transformers asks of a DeepSpeed configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        """Whether parameters are sharded."""
        return True


@contextmanager
def sharded_construction() -> Iterator[None]:
    """Within, transformers makes each parameter in shards and reads weights on one rank; nothing outside ZeRO-3."""
    config = _config.get()
    if config is None:
        yield
        return
    from transformers.integrations import deepspeed

    held = _Config(config)  # transformers keeps a weak reference
    deepspeed.set_hf_deepspeed_config(held)
    try:
        with release_freed_memory():
            yield
    finally:
        deepspeed.unset_hf_deepspeed_config()


def distribute(model: nn.Module, mesh: DeviceMesh, *, trained: bool = True) -> None:
    """Cut ``model`` up over the ranks of ``mesh``, layer by layer; what is in no layer is gathered together.

    That outermost part stays whole after a forward pass where it is ``trained``: the backward pass begins with it.
    """
    layers = layer_names(model)
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=not trained)


def layer_names(model: nn.Module) -> set[str]:
    """Names of the classes that a model repeats: its layers."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}


def holds_whole(weights: Weights, size: int, device: torch.device, what: str) -> bool:
    """Whether every rank holds weights whole; says which and why.

    Args:
        weights: the user's wish.
        size: bytes of all of them.
        device: of this rank; ranks are taken to have equal ones.
        what: names them in the log.
    """
    share = size / device_memory(device)
    whole = weights == "whole" or (weights == "auto" and share <= LARGEST_WHOLE)
    log.info(
        "%s: %s, for %s (%.1f GB, %.0f%% of what a rank has; `auto` goes up to %.0f%%).",
        what,
        "whole on every rank" if whole else "in shards",
        "that is their size" if weights == "auto" else "you asked for it",
        size / 1e9,
        100 * share,
        100 * LARGEST_WHOLE,
    )
    return whole


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU; or what each rank has of its machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // here


def tensors_of_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that a state of ``model`` has, tied ones by each of their names.

    They are the model's own, where ``state_dict`` has copies without gradient; and FSDP2, asked for that, puts weights
    that are together back into shards.
    """
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


@torch.no_grad()
def gathered_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a model in shards, on the CPU, one weight fetched after the other. All ranks must take part.

    Args:
        model: in shards; of one with adapters, only what is trained is fetched.
        keep: whether this rank wants it; the others only help.

    Returns:
        by name, tied weights as one tensor; empty without ``keep``.
    """
    adapters = hasattr(model, "peft_config")
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in tensors_of_state(model).items():
        if adapters and isinstance(value, nn.Parameter) and not value.requires_grad:
            continue
        if id(value) not in seen:
            with release_freed_memory(), _fetched(value) as whole:
                seen[id(value)] = whole.detach().to("cpu", copy=True) if keep else torch.empty(0)
        if keep:
            found[name] = seen[id(value)]
    return found


@contextmanager
def _fetched(value: Tensor) -> Iterator[Tensor]:
    if isinstance(value, DTensor):
        yield value.full_tensor()
    elif hasattr(value, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            yield value
    else:
        yield value
