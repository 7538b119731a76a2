"""Models too large for one rank: built in shards, evaluated in shards, and gathered to be saved."""

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
from transformers import PreTrainedModel

from dpr_lightning.engine.host_memory import release_freed_memory
from dpr_lightning.engine.known_decoders import has_adapters
from dpr_lightning.partitioned_weights import is_partitioned

log = logging.getLogger(__name__)
Weights = Literal["auto", "whole", "shards"]
"""Placement of weights during inference: whole on every rank, in shards, or ``auto`` by their size."""
LARGEST_WHOLE = 1 / 3
"""Largest share of a device's memory at which ``auto`` puts whole weights on every rank."""
_config: ContextVar[Mapping[str, Any] | None] = ContextVar("zero3_config", default=None)


@contextmanager
def build_sharded(config: Mapping[str, Any]) -> Iterator[None]:
    """While the block runs, policies in training are built in shards by the DeepSpeed ``config``."""
    token = _config.set(config)
    try:
        yield
    finally:
        _config.reset(token)


class _Config:
    """The interface of a DeepSpeed configuration that transformers uses."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        """Whether parameters are sharded."""
        return True


@contextmanager
def sharded_construction() -> Iterator[None]:
    """While the block runs under ZeRO-3, transformers builds parameters in shards and loads weights on one rank."""
    config = _config.get()
    if config is None:
        yield
        return
    from transformers.integrations import deepspeed

    wrapped = _Config(config)  # transformers keeps a weak reference
    deepspeed.set_hf_deepspeed_config(wrapped)
    try:
        with release_freed_memory():
            yield
    finally:
        deepspeed.unset_hf_deepspeed_config()


def distribute(model: nn.Module, mesh: DeviceMesh, *, trained: bool = True) -> None:
    """Shard ``model`` over the ranks of ``mesh``, layer by layer; weights in no layer form one more unit.

    That unit stays gathered after a forward pass if ``trained``: the backward pass begins with it.
    """
    layers = layer_names(model)
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=not trained)


def layer_names(model: nn.Module) -> set[str]:
    """Names of the classes of a model's layers: the modules that it repeats."""
    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return {name for module in models for name in module._no_split_modules or ()}


def holds_whole(weights: Weights, weight_size: int, device: torch.device, what: str) -> bool:
    """Whether every rank has whole weights; logs the decision and its reason.

    Args:
        weights: the user's option.
        weight_size: bytes of all of them.
        device: of this rank; all ranks are assumed to have equal ones.
        what: their name in the log.
    """
    share = weight_size / device_memory(device)
    whole = weights == "whole" or (weights == "auto" and share <= LARGEST_WHOLE)
    log.info(
        "%s: %s, for %s (%.1f GB, %.0f%% of what a rank has; `auto` goes up to %.0f%%).",
        what,
        "whole on every rank" if whole else "in shards",
        "that is their size" if weights == "auto" else "the option says so",
        weight_size / 1e9,
        100 * share,
        100 * LARGEST_WHOLE,
    )
    return whole


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory; of a CPU, this rank's share of the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // here


def tensors_of_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of ``model``'s state, tied ones under each of their names.

    They are the model's tensors themselves, whereas ``state_dict`` returns tensors without gradient; and under FSDP2
    ``state_dict`` puts gathered weights back into shards.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    return tensors


@torch.no_grad()
def gathered_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a model in shards, gathered on the CPU one weight at a time. A collective: every rank must call it.

    Args:
        model: in shards; of one with adapters, only trained weights are gathered.
        keep: whether this rank needs the result; other ranks only send their shards.

    Returns:
        weights by name, tied ones as one tensor; empty without ``keep``.
    """
    adapters = has_adapters(model)
    gathered: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in tensors_of_state(model).items():
        if adapters and isinstance(value, nn.Parameter) and not value.requires_grad:
            continue
        if id(value) not in seen:
            with release_freed_memory(), _fetched(value) as whole:
                seen[id(value)] = whole.detach().to("cpu", copy=True) if keep else torch.empty(0)
        if keep:
            gathered[name] = seen[id(value)]
    return gathered


@contextmanager
def _fetched(value: Tensor) -> Iterator[Tensor]:
    if isinstance(value, DTensor):
        yield value.full_tensor()
    elif is_partitioned(value):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            yield value
    else:
        yield value
