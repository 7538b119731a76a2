"""Products, norms and attention of one token a row on a CPU, in float32 and bfloat16 (``decoding.cpp``).

Sums are float32. A row's result depends neither on the number of rows nor on the number of threads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dpr_lightning.engine.kernels.calling import has_kernels, is_plain, lanes, panel, run

_THEN = {"none": 0, "silu": 1, "times": 2, "plus": 3}


def packed_bytes(columns: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the copy that :class:`PackedWeight` makes of weights [columns, width]."""
    return -(-columns // panel()) * panel() * width * dtype.itemsize


class PackedWeight:
    """A copy of the weights of a linear layer, packed for products with a few rows.

    Args:
        weight: [columns, width]; in bfloat16 the width is even.
        bias: [columns], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if not is_plain(weight) or not has_kernels(weight.dtype, weight.device):
            raise ValueError(f"Weights that are {type(weight).__name__} of {weight.dtype} on {weight.device}.")
        self._columns, self._width = weight.shape
        self._dtype, self._bias = weight.dtype, None if bias is None else bias.detach().contiguous()
        if self._width * self._dtype.itemsize % 4:
            raise ValueError(f"Rows of {self._width} bfloat16 are no whole pairs.")
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
            raise ValueError(f"A bias {tuple(bias.shape)} of {bias.dtype} for weights {tuple(weight.shape)}.")
        words = packed_bytes(self._columns, self._width, self._dtype) // 4
        self._panels = torch.empty(words, dtype=torch.int32, device="cpu")
        run("pack", self._dtype, [weight.detach().contiguous(), self._panels], self._width, self._columns)

    def __call__(self, rows: Tensor, other: Tensor | None = None, then: str = "none") -> Tensor:
        """``rows`` [B, width] times the weights, and bias: [B, columns]; ``then`` silu, or times or plus ``other``."""
        if rows.dim() != 2 or rows.shape[1] != self._width or rows.dtype != self._dtype or not rows.is_cpu:
            raise ValueError(f"Rows {tuple(rows.shape)} of {rows.dtype} for weights of {self._width} {self._dtype}.")
        result = rows.new_empty(len(rows), self._columns)
        if other is not None:
            if other.shape != result.shape or other.dtype != result.dtype or not other.is_cpu:
                raise ValueError(f"{tuple(other.shape)} of {other.dtype} for a product {tuple(result.shape)}.")
            other = other.contiguous()
        tensors = [rows.contiguous(), self._panels, self._bias, other, result]
        run("product", self._dtype, tensors, len(rows), self._width, self._columns, _THEN[then])
        return result


def root_mean_square_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``weight · hidden / √(mean(hidden²) + epsilon)`` over the last dimension of [..., width]."""
    width = hidden.shape[-1]
    if weight.shape != (width,) or weight.dtype != hidden.dtype or width % lanes():
        raise ValueError(f"A norm {tuple(weight.shape)} of {weight.dtype} over {tuple(hidden.shape)} {hidden.dtype}.")
    hidden, weight = hidden.contiguous(), weight.contiguous()
    result = torch.empty_like(hidden)
    run("norm", hidden.dtype, [hidden, weight, result], hidden.numel() // width, width, epsilon)
    return result


class LayerPromptCache(NamedTuple):
    """Keys and values of the prompts that rows answer in one layer, each stored once.

    ``keys`` and ``values`` [G, heads, P, width]; ``bias`` [G, P] float32, added to their scores, or None; the
    ``prompt`` that each row answers, [B] int64; the rows in an ``order`` [B] int64 that has those of a prompt together.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None
    prompt: Tensor
    order: Tensor

    def expect(self, rows: int, heads: int, width: int, dtype: torch.dtype) -> None:
        """Raise ValueError unless this fits such rows."""
        count, _, length, _ = self.keys.shape
        if not (
            self.keys.shape == self.values.shape == (count, heads, length, width)
            and self.keys.dtype == self.values.dtype == dtype
            and (self.bias is None or (self.bias.shape == (count, length) and self.bias.dtype == torch.float32))
            and self.prompt.shape == self.order.shape == (rows,)
            and self.prompt.dtype == self.order.dtype == torch.int64
            and all(part is None or (part.is_contiguous() and part.is_cpu) for part in self)
        ):
            raise ValueError(
                f"Prompts {tuple(self.keys.shape)} of {self.keys.dtype} do not fit {rows} rows of {dtype}."
            )


def attend(
    projected: Tensor,
    cosine: Tensor,
    signed_sine: Tensor,
    cache: tuple[Tensor, Tensor],
    length: int,
    scale: float,
    bias: Tensor | None = None,
    prompts: "LayerPromptCache | None" = None,
) -> Tensor:
    """Rotate queries and keys to their positions, append keys and values to the cache, and attend.

    Args:
        projected: [B, (n + 2) · heads · width], of each row n · heads queries, then keys, then values.
        cosine: [B, 1, width], of the rows' positions.
        signed_sine: [B, 1, width], see :func:`dpr_lightning.engine.attention_blocks.signed_sine`.
        cache: keys and values [B, heads, capacity, width] of the rows, contiguous; written to. The width is a multiple
            of :func:`dpr_lightning.engine.kernels.lanes`.
        length: tokens of a row, the new one included; at most the capacity.
        scale: of the scores.
        bias: [B or 1, length] float32, added to the scores of a row's own tokens.
        prompts: keys and values that come before a row's tokens.

    Returns:
        output of the heads, [B, n · heads · width].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    keys, values = cache
    rows, heads, capacity, width = keys.shape
    group = projected.shape[1] // (heads * width) - 2
    each = [projected, cosine, signed_sine, keys, values]
    if (
        projected.shape != (rows, (group + 2) * heads * width)
        or any(part.shape != (rows, 1, width) for part in (cosine, signed_sine))
        or values.shape != keys.shape
        or not 0 < length <= capacity
        or width % lanes()
        or (bias is not None and (bias.shape not in ((rows, length), (1, length)) or bias.dtype != torch.float32))
        or not all(part.dtype == projected.dtype and part.is_contiguous() for part in each)
        or not all(part is None or part.is_cpu for part in (*each, bias))
    ):
        shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in each)
        raise ValueError(f"Attention of {length} tokens does not fit: {shapes}.")
    if prompts is not None:
        prompts.expect(rows, heads, width, projected.dtype)
    bias = None if bias is None else bias.contiguous()
    result = projected.new_empty(rows, group * heads * width)
    tensors = [*each, bias, *(prompts or (None,) * 5), result]
    sizes = rows, heads, group, width, capacity, length, 0 if prompts is None else prompts.keys.shape[2]
    bias_stride = 0 if bias is None or len(bias) == 1 else bias.stride(0)
    run("attend", projected.dtype, tensors, *sizes, bias_stride, scale)
    return result
