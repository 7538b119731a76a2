"""Causal attention of short sequences as plain products, the fastest way on a CPU in half precision.

0.2 to 0.4 of the time of PyTorch's attention in training, for rows of 64 to 2,048 tokens in bfloat16
(docs/performance.md).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 64
"""Queries of a block: keys that are hidden from all of them are not read, and scores fit into a CPU's cache."""


def block_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    scale: float,
    seen: Bool[Tensor, "B 1 T S"] | None = None,
) -> Float[Tensor, "B T H*D"]:
    """softmax(scale·Q·Kᵀ)·V, where query t sees keys up to its own, S − T + t.

    H/K queries that share a key head are rows of one product, so keys are never copied for them. The backward pass
    computes the scores again: only q, k and v are saved.

    Args:
        query: with positions, of the last T of S tokens.
        key: K heads, of which each serves H/K of the queries' next to each other.
        value: as ``key``.
        scale: of the scores.
        seen: False for earlier keys that are hidden from a query. A query without any visible key gets the mean of some
            values, not NaN.

    Returns:
        all heads of a token concatenated, in the type of ``query``. In half precision scores are rounded
        to it (as in transformers' eager attention); the softmax is computed in float32.

    Source: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (arXiv:2305.13245) for shared keys.
    """
    attend: Any = _BlockAttention.apply
    result: Tensor = attend(query, key, value, scale, seen)
    return result


def rotate(
    heads: Float[Tensor, "B T H D"], cosine: Float[Tensor, "B T D"], turned: Float[Tensor, "B T D"]
) -> Float[Tensor, "B T H D"]:
    """Rotary positions: every pair (x_i, x_{i+D/2}) is rotated by the angle of its frequency and its position.

    Args:
        heads: queries or keys.
        cosine: of the angles, repeated for both halves.
        turned: their sines, signed by :func:`signed_sine`.

    Source: Su et al. 2021 (arXiv:2104.09864), eq. 34.
    """
    turn: Any = _Rotate.apply
    result: Tensor = turn(heads, cosine.unsqueeze(2), turned.unsqueeze(2))
    return result


def signed_sine(sine: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """The sines for :func:`rotate`, negative in the first half of a head."""
    half = sine.shape[-1] // 2
    return torch.cat([-sine[..., :half], sine[..., half:]], -1)


class _Rotate(torch.autograd.Function):
    """x·cos + roll(x)·turned; the gradient is rotated back, by the opposite sign."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, turned: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, turned)
        return _turn(heads, cosine, turned)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, turned = ctx.saved_tensors
        return _turn(gradient, cosine, -turned), None, None


def _turn(heads: Tensor, cosine: Tensor, turned: Tensor) -> Tensor:
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), turned)


class _Block(NamedTuple):
    """A block: its queries [B·K, n, D], probabilities [B·K, n, keys], positions of the queries, number of keys."""

    query: Tensor
    probability: Tensor
    positions: slice
    keys: int


class _Heads(NamedTuple):
    """Keys, multiplied by the scale of the scores, and values [B·K, S, D]; queries [B, K, H/K, T, D]."""

    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, scale: float) -> "_Heads":
        rows, _, length, width = query.shape
        grouped = query.view(rows, key.shape[1], -1, length, width)
        scaled = torch.mul(key, scale, out=torch.empty_like(key, memory_format=torch.contiguous_format))
        return cls(grouped, scaled.flatten(0, 1), value.contiguous().flatten(0, 1))

    def blocks(self, seen: Tensor | None) -> Iterator[_Block]:
        rows, groups, share, length, width = self.query.shape
        lowest = torch.finfo(self.query.dtype).min
        later = self.query.new_full((_BLOCK, _BLOCK), lowest).triu_(1)
        for start in range(0, length, _BLOCK):
            positions = slice(start, min(start + _BLOCK, length))
            count = positions.stop - start
            keys = self.key.shape[1] - length + positions.stop
            query = self.query[..., positions, :].reshape(rows * groups, share * count, width)
            score = torch.bmm(query, self.key[:, :keys].transpose(1, 2))
            by_group = score.view(rows, groups, share, count, keys)
            by_group[..., keys - count :] += later[:count, :count]
            if seen is not None:
                hidden = ~seen[:, :, None, positions, :keys]
                by_group += torch.zeros_like(hidden, dtype=score.dtype).masked_fill_(hidden, lowest)
            yield _Block(query, score.softmax(-1), positions, keys)


class _BlockAttention(torch.autograd.Function):
    """See :func:`block_attention`.

    With P the probabilities and O = P·V:  ∂L/∂V = Pᵀ·∂L/∂O;  ∂L/∂S = P ⊙ (E − Σ E ⊙ P), E = ∂L/∂O·Vᵀ;
    ∂L/∂Q = scale·∂L/∂S·K;  ∂L/∂K = scale·∂L/∂Sᵀ·Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, value, seen)
        ctx.scale = scale
        heads = _Heads.of(query, key, value, scale)
        rows, groups, share, length, width = heads.query.shape
        result = query.new_empty(rows, length, groups, share, width)
        for block in heads.blocks(seen):
            mixed = torch.bmm(block.probability, heads.value[:, : block.keys])
            result[:, block.positions] = mixed.view(rows, groups, share, -1, width).permute(0, 3, 1, 2, 4)
        return result.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen = ctx.saved_tensors
        heads = _Heads.of(query, key, value, ctx.scale)
        rows, groups, share, length, width = heads.query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        query_grad = torch.empty_like(query, memory_format=torch.contiguous_format)
        key_grad, value_grad = (torch.zeros_like(part, dtype=wide) for part in (heads.key, heads.value))
        by_head = gradient.view(rows, length, groups, share, width).permute(0, 2, 3, 1, 4)
        for block in heads.blocks(seen):
            inner = by_head[..., block.positions, :].reshape(rows * groups, -1, width)
            value_grad[:, : block.keys] += torch.bmm(block.probability.transpose(1, 2), inner)
            score_grad = torch.bmm(inner, heads.value[:, : block.keys].transpose(1, 2))
            score_grad = torch._softmax_backward_data(score_grad, block.probability, -1, query.dtype)
            key_grad[:, : block.keys] += torch.bmm(score_grad.transpose(1, 2), block.query)
            result = torch.bmm(score_grad, heads.key[:, : block.keys])
            query_grad.view(heads.query.shape)[..., block.positions, :] = result.view(rows, groups, share, -1, width)
        return (
            query_grad,
            key_grad.mul_(ctx.scale).to(key.dtype).view(key.shape),
            value_grad.to(value.dtype).view(value.shape),
            None,
            None,
        )
