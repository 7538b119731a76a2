"""Products of few rows with weights that stay as they are for many of them."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

_MANY_WEIGHTS = 1 << 16
"""Weights from which on a copy that is laid out for products pays; smaller ones lie in a CPU's cache as they are."""
_ROWS = 64
"""Rows that the copy is laid out for; it serves others as well."""


class Product:
    """``layer(rows)`` of rows [B, width], without gradient, and what often follows in the same call.

    PyTorch brings the weights of a linear layer into oneDNN's or MKL's order in every call; where rows are few, that
    takes as long as the product. Here it is done once, for layers of a CPU that are plain ones: a copy of their weights
    that lives as long as this (docs/performance.md). Others, and all on a GPU, are called as they are.

    Args:
        layer: whose weights do not change in the meantime.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer: Any = layer
        self._packed = _ops()._reorder_linear_weight(layer.weight.detach(), _ROWS) if _pays(layer) else None

    def __call__(self, rows: Tensor) -> Tensor:
        """``layer(rows)``."""
        return self._then(rows, "none")

    def silu(self, rows: Tensor) -> Tensor:
        """``silu(layer(rows))``."""
        return self._then(rows, "swish")

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """``layer(rows) * other``."""
        return self._layer(rows) * other if self._packed is None else self._with(rows, other, "mul")

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """``layer(rows) + other``."""
        return self._layer(rows) + other if self._packed is None else self._with(rows, other, "add")

    def _then(self, rows: Tensor, what: str) -> Tensor:
        if self._packed is None:
            found: Tensor = self._layer(rows)
            return silu(found) if what == "swish" else found
        made: Tensor = _ops()._linear_pointwise(rows, self._packed, self._layer.bias, what, [], "")
        return made

    def _with(self, rows: Tensor, other: Tensor, what: str) -> Tensor:
        made: Tensor = _ops()._linear_pointwise.binary(rows, other, self._packed, self._layer.bias, what)
        return made


def _pays(layer: Any) -> bool:
    if type(layer) is not nn.Linear or not layer.weight.is_cpu or layer.weight.numel() < _MANY_WEIGHTS:
        return False
    return layer.weight.dtype in _packed_types()


@cache
def _packed_types() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or not hasattr(_ops(), "_linear_pointwise"):
        return ()
    half = (torch.bfloat16,) if _ops()._is_mkldnn_bf16_supported() else ()
    return (torch.float32, *half)


def _ops() -> Any:
    return torch.ops.mkldnn
