"""Policies too large for one rank: built in shards, under DeepSpeed's ZeRO-3."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

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
    deepspeed.set_hf_deepspeed_config(held)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        deepspeed.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of ``model`` is held in shards, by ZeRO-3 or FSDP2."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())
