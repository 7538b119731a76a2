"""A short forward pass, by which two models are compared that should be the same policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpr_lightning.engine import inside_of_adapters
from dpr_lightning.model_options import ModelOptions

LENGTH = 16
TOLERANCE, HALF_TOLERANCE = 1e-4, 0.05
"""Largest difference, in nats a token, that rounding may cause between two passes over the same weights."""


def probe_tokens(model: nn.Module) -> Tensor:
    """Token ids [1, T] on the CPU; the same for every call with the same vocabulary."""
    base: Any = inside_of_adapters(model)
    rows = len(base.get_input_embeddings().weight)
    positions = ModelOptions.of_text(base.config).positions or LENGTH
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows, (1, min(LENGTH, positions)), generator=generator)


@torch.no_grad()
def probe(model: nn.Module, tokens: Tensor) -> Tensor:
    """Log-probabilities of every next token, [T, V] float32 on the CPU; of a model with one output, that output.

    Without dropout; the model's modes and the states of random generators are restored.
    """
    device = next(model.parameters()).device
    tokens = tokens.to(device)
    with _evaluating(model), torch.autocast(device.type, enabled=False):
        logits: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    logits = logits.float().flatten(0, -2).cpu()
    return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)


def difference(first: Tensor, second: Tensor) -> float:
    """Mean over tokens of the expected difference of two models' log-probabilities, in nats a token.

    Infinite where one of them is NaN and the other is not.
    """
    if not torch.equal(first.isnan(), second.isnan()):
        return float("inf")
    weight = first.exp() if first.shape[-1] > 1 else torch.ones_like(first)
    return float((weight * (first - second).abs()).nan_to_num(0.0).sum(-1).mean())


def tolerance(model: nn.Module) -> float:
    """The largest :func:`difference` that rounding may cause in the precision of ``model``."""
    exact = all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())
    exact = exact and torch.get_float32_matmul_precision() == "highest"
    return TOLERANCE if exact else HALF_TOLERANCE


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
