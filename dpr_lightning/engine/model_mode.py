"""The mode and the device of models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses import FakeTensor


@contextmanager
def evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put models into evaluation mode inside the context: no dropout and no gradient checkpointing."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)


def model_device(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device


def has_content(model: nn.Module) -> bool:
    """Whether a model's parameters have numbers, and not shapes alone as those whose memory is counted."""
    return not isinstance(next(model.parameters()), FakeTensor)
