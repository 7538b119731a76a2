"""Products of few rows with weights that are packed once and used in many steps."""

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
"""Number of weights from which a packed copy of oneDNN pays; fewer fit into a CPU's cache."""
_ROWS = 64
"""Rows that the copy is packed for; other numbers work as well."""


class PackedLinear:
    """``layer(rows)`` of rows [B, width], without gradient, optionally fused with the operation that follows.

    PyTorch reorders the weights of a linear layer for oneDNN or MKL in every call; with few rows, that takes as long as
    the product. Here plain layers on a CPU are reordered once: the first call copies their weights to a
    :class:`dpr_lightning.engine.kernels.PackedWeight` where kernels are compiled, else to a tensor in oneDNN's layout
    (docs/performance.md). All other layers, and all under autocast, are called directly.

    Args:
        layers: whose weights do not change while this is in use; outputs of several are concatenated.

    Attributes:
        lays_out: whether it makes a packed copy.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self._layers: Any = layers
        self._compiled = _are_plain(layers) and _fit_kernels(layers)
        self.lays_out = self._compiled or (_are_plain(layers) and _fit_onednn(layers))

    def __call__(self, rows: Tensor, other: Tensor | None = None, then: str = "none") -> Tensor:
        """``layer(rows)``, followed by ``then``: silu, or times or plus ``other``."""
        if self._is_laid_out(rows):
            return self._laid_out(rows, other, then)
        tensors = [layer(rows) for layer in self._layers]
        result: Tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors, -1)
        if other is None:
            return silu(result) if then == "silu" else result
        return result * other if then == "times" else result + other

    @property
    def packed_bytes(self) -> int:
        """Bytes of the copy that the first call makes."""
        if self._compiled:
            weight = self._layers[0].weight
            columns = sum(len(layer.weight) for layer in self._layers)
            return packed_bytes(columns, weight.shape[1], weight.dtype)
        return sum(layer.weight.nbytes for layer in self._layers) if self.lays_out else 0

    def _is_laid_out(self, rows: Tensor) -> bool:
        if not self.lays_out or isinstance(rows, FakeTensor) or torch.is_autocast_enabled("cpu"):
            return False
        return not self._compiled or serves(rows)

    @cached_property
    def _laid_out(self) -> "PackedWeight | _OneDnnLinear":
        weights = [layer.weight.detach() for layer in self._layers]
        biases = [layer.bias.detach() for layer in self._layers if layer.bias is not None]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return (PackedWeight if self._compiled else _OneDnnLinear)(weight, torch.cat(biases) if biases else None)


class _OneDnnLinear:
    """The products of :class:`dpr_lightning.engine.kernels.PackedWeight`, by PyTorch's operations."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = _ops()._reorder_linear_weight(weight, _ROWS), bias

    def __call__(self, rows: Tensor, other: Tensor | None = None, then: str = "none") -> Tensor:
        if other is None:
            name = {"none": "none", "silu": "swish"}[then]
            result: Tensor = _ops()._linear_pointwise(rows, self._weight, self._bias, name, [], "")
        else:
            name = {"times": "mul", "plus": "add"}[then]
            result = _ops()._linear_pointwise.binary(rows, other, self._weight, self._bias, name)
        return result


def _are_plain(layers: Sequence[Any]) -> bool:
    if not all(type(layer) is nn.Linear and layer.weight.is_cpu for layer in layers):
        return False
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]
    return (
        all(is_plain(tensor) or isinstance(tensor, FakeTensor) for tensor in tensors)  # `dpr plan` has shapes alone
        and len({tensor.dtype for tensor in tensors}) == 1
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
    known = "mkldnn::_linear_pointwise" in torch._C._dispatch_get_all_op_names()
    if not known or not torch.backends.mkldnn.is_available():
        return ()
    half = (torch.bfloat16,) if _ops()._is_mkldnn_bf16_supported() else ()
    return (torch.float32, *half)


def _ops() -> Any:
    return torch.ops.mkldnn


def _operations(rows: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * rows[-1]


if _packed_types():
    # PyTorch's counter of operations, which `dpr compare` uses for budgets, does not know this product.
    register_flop_formula(_ops()._linear_pointwise)(_operations)
