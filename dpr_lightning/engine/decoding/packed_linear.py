"""Products of few rows with weights that stay as they are for many of them."""

import math
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.functional import silu
from torch.utils.flop_counter import register_flop_formula

from dpr_lightning.engine.kernels.calling import has_kernels, is_plain, serves
from dpr_lightning.engine.kernels.decoding_kernels import PackedWeight, packed_bytes

_MANY_WEIGHTS = 1 << 16
"""Weights from which on a copy that oneDNN lays out pays; smaller ones lie in a CPU's cache as they are."""
_ROWS = 64
"""Rows that the copy is laid out for; it serves others as well."""


class PackedLinear:
    """``layer(rows)`` of rows [B, width], without gradient, and what often follows in the same call.

    PyTorch brings the weights of a linear layer into oneDNN's or MKL's order in every call; where rows are few, that
    takes as long as the product. Here it is done once, for layers of a CPU that are plain ones: the first call makes a
    copy of their weights that lives as long as this, in a :class:`dpr_lightning.engine.kernels.PackedWeight` where that
    is compiled, else for oneDNN (docs/performance.md). Others, and all on a GPU, are called as they are; so are all
    under autocast.

    Args:
        layers: whose weights do not change in the meantime; what several give stands next to each other.

    Attributes:
        lays_out: whether it makes a copy.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self._layers: Any = layers
        self._compiled = _are_plain(layers) and _fit_kernels(layers)
        self.lays_out = self._compiled or (_are_plain(layers) and _fit_onednn(layers))

    def __call__(self, rows: Tensor) -> Tensor:
        """``layer(rows)``."""
        return self._laid_out(rows) if self._is_laid_out(rows) else self._called(rows)

    def silu(self, rows: Tensor) -> Tensor:
        """``silu(layer(rows))``."""
        return self._laid_out(rows, None, "silu") if self._is_laid_out(rows) else silu(self._called(rows))

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """``layer(rows) * other``."""
        return self._laid_out(rows, other, "times") if self._is_laid_out(rows) else self._called(rows) * other

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """``layer(rows) + other``."""
        return self._laid_out(rows, other, "plus") if self._is_laid_out(rows) else self._called(rows) + other

    @property
    def packed_bytes(self) -> int:
        """Of the copy that the first call makes."""
        if self._compiled:
            weight = self._layers[0].weight
            columns = sum(len(layer.weight) for layer in self._layers)
            return packed_bytes(columns, weight.shape[1], weight.dtype)
        return sum(layer.weight.nbytes for layer in self._layers) if self.lays_out else 0

    def _is_laid_out(self, rows: Tensor) -> bool:
        if not self.lays_out or torch.is_autocast_enabled("cpu"):
            return False
        return not self._compiled or serves(rows)

    def _called(self, rows: Tensor) -> Tensor:
        given = [layer(rows) for layer in self._layers]
        return given[0] if len(given) == 1 else torch.cat(given, -1)

    @cached_property
    def _laid_out(self) -> "PackedWeight | _OneDnnLinear":
        weights, biases = (
            [held.detach() for layer in self._layers if (held := getattr(layer, name)) is not None]
            for name in ("weight", "bias")
        )
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return (PackedWeight if self._compiled else _OneDnnLinear)(weight, torch.cat(biases) if biases else None)


class _OneDnnLinear:
    """What :class:`dpr_lightning.engine.kernels.PackedWeight` does, by PyTorch's own operations."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = _ops()._reorder_linear_weight(weight, _ROWS), bias

    def __call__(self, rows: Tensor, other: Tensor | None = None, then: str = "none") -> Tensor:
        if other is None:
            what = {"none": "none", "silu": "swish"}[then]
            made: Tensor = _ops()._linear_pointwise(rows, self._weight, self._bias, what, [], "")
        else:
            what = {"times": "mul", "plus": "add"}[then]
            made = _ops()._linear_pointwise.binary(rows, other, self._weight, self._bias, what)
        return made


def _are_plain(layers: Sequence[Any]) -> bool:
    if not all(type(layer) is nn.Linear and layer.weight.is_cpu for layer in layers):
        return False
    given = [held for layer in layers for held in (layer.weight, layer.bias) if held is not None]
    return (
        all(is_plain(held) or isinstance(held, FakeTensor) for held in given)  # `dpr plan` asks for sizes alone
        and len({held.dtype for held in given}) == 1
        and len({layer.bias is not None for layer in layers}) == 1
    )


def _fit_kernels(layers: Sequence[Any]) -> bool:
    weight = layers[0].weight
    return has_kernels(weight.dtype, weight.device) and weight.shape[1] * weight.dtype.itemsize % 4 == 0


def _fit_onednn(layers: Sequence[Any]) -> bool:
    many = sum(layer.weight.numel() for layer in layers) >= _MANY_WEIGHTS
    return many and layers[0].weight.dtype in _packed_types()


@cache
def _packed_types() -> tuple[torch.dtype, ...]:
    if not hasattr(_ops(), "_linear_pointwise") or not torch.backends.mkldnn.is_available():
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
