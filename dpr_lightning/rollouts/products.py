"""Products of few rows with weights that stay as they are for many of them."""

import math
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.flop_counter import register_flop_formula

_MANY_WEIGHTS = 1 << 16
"""Weights from which on a copy that is laid out for products pays; smaller ones lie in a CPU's cache as they are."""
_ROWS = 64
"""Rows that the copy is laid out for; it serves others as well."""


class Product:
    """``layer(rows)`` of rows [B, width], without gradient, and what often follows in the same call.

    PyTorch brings the weights of a linear layer into oneDNN's or MKL's order in every call; where rows are few, that
    takes as long as the product. Here it is done once, for layers of a CPU that are plain ones: the first call makes a
    copy of their weights that lives as long as this (docs/performance.md). Others, and all on a GPU, are called as they
    are; so are all under autocast.

    Args:
        layers: whose weights do not change in the meantime; what several give stands next to each other.

    Attributes:
        lays_out: whether it makes a copy.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self._layers: Any = layers
        biased = {getattr(layer, "bias", None) is not None for layer in layers}
        self.lays_out = len(biased) == 1 and all(map(_may, layers)) and _size(layers) >= _MANY_WEIGHTS

    def __call__(self, rows: Tensor) -> Tensor:
        """``layer(rows)``."""
        return self._then(rows, "none") if self._is_laid_out() else self._called(rows)

    def silu(self, rows: Tensor) -> Tensor:
        """``silu(layer(rows))``."""
        return self._then(rows, "swish") if self._is_laid_out() else silu(self._called(rows))

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """``layer(rows) * other``."""
        return self._with(rows, other, "mul") if self._is_laid_out() else self._called(rows) * other

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """``layer(rows) + other``."""
        return self._with(rows, other, "add") if self._is_laid_out() else self._called(rows) + other

    @property
    def laid_out_bytes(self) -> int:
        """Of the copy that the first call makes."""
        return sum(layer.weight.nbytes for layer in self._layers) if self.lays_out else 0

    def _is_laid_out(self) -> bool:
        return self.lays_out and not torch.is_autocast_enabled("cpu")

    def _called(self, rows: Tensor) -> Tensor:
        given = [layer(rows) for layer in self._layers]
        return given[0] if len(given) == 1 else torch.cat(given, -1)

    @cached_property
    def _laid_out(self) -> tuple[Tensor, Tensor | None]:
        weights, biases = (
            [held.detach() for layer in self._layers if (held := getattr(layer, name)) is not None]
            for name in ("weight", "bias")
        )
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return _ops()._reorder_linear_weight(weight, _ROWS), torch.cat(biases) if biases else None

    def _then(self, rows: Tensor, what: str) -> Tensor:
        made: Tensor = _ops()._linear_pointwise(rows, *self._laid_out, what, [], "")
        return made

    def _with(self, rows: Tensor, other: Tensor, what: str) -> Tensor:
        made: Tensor = _ops()._linear_pointwise.binary(rows, other, *self._laid_out, what)
        return made


def _may(layer: Any) -> bool:
    return type(layer) is nn.Linear and layer.weight.is_cpu and layer.weight.dtype in _packed_types()


def _size(layers: Sequence[Any]) -> int:
    return sum(layer.weight.numel() for layer in layers)


@cache
def _packed_types() -> tuple[torch.dtype, ...]:
    if not hasattr(_ops(), "_linear_pointwise") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return ()
    half = (torch.bfloat16,) if _ops()._is_mkldnn_bf16_supported() else ()
    return (torch.float32, *half)


def _ops() -> Any:
    return torch.ops.mkldnn


def _operations(rows: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * rows[-1]


if _packed_types():
    # PyTorch's counter of operations, by which `dpr compare` gives each arm its budget, knows no such product.
    register_flop_formula(_ops()._linear_pointwise)(_operations)
