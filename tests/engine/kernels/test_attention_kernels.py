"""Attention of whole rows in C++, against autograd in float64, on every width of vectors that this CPU has."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dpr_lightning.engine import block_attention, kernels

pytestmark = pytest.mark.usefixtures("vectors")
Shape = tuple[int, int, int, int, int, int]
SHAPES: list[Shape] = [  # rows, heads, key heads, queries, keys, width
    (1, 1, 1, 1, 1, 16),
    (1, 1, 1, 5, 5, 16),
    (2, 6, 2, 37, 37, 32),
    (2, 9, 3, 130, 130, 64),
    (3, 4, 4, 20, 50, 80),
    (1, 8, 1, 64, 65, 128),
]


def given(shape: Shape) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values as a decoder has them, heads behind tokens in memory, and a gradient."""
    rows, heads, key_heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    parts = [
        torch.randn(rows, tokens, count, width, generator=generator).bfloat16().transpose(1, 2).requires_grad_()
        for count, tokens in ((heads, queries), (key_heads, keys), (key_heads, keys))
    ]
    return parts, torch.randn(rows, queries, heads * width, generator=generator).bfloat16()


def mask(shape: Shape) -> Tensor:
    """Padding on the left of the first row, a gap in all others, as transformers' masks are: causal as well."""
    rows, _, _, queries, keys, _ = shape
    seen = torch.ones(rows, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    seen[0, :, :, : keys // 3] = False
    seen[1:, :, :, 1:3] = False
    return seen


def exact(parts: list[Tensor], seen: Tensor | None) -> tuple[list[Tensor], Tensor]:
    query, key, value = wide = [part.detach().double().requires_grad_() for part in parts]
    share, queries, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    score = query @ key.repeat_interleave(share, 1).transpose(-1, -2) * query.shape[-1] ** -0.5
    if seen is not None:
        score = score.masked_fill(~seen, -3e38)
    score = score.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1), float("-inf"))
    return wide, (score.softmax(-1) @ value.repeat_interleave(share, 1)).transpose(1, 2).flatten(2)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).norm() / (wanted.detach().norm() + 1e-3))


@pytest.mark.parametrize("masked", ["", "padded", "expanded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: Shape, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, gradient = given(shape)
    seen = mask(shape) if masked else None
    if masked == "expanded" and seen is not None:
        seen = seen[:1].expand(shape[0], -1, -1, -1)
    assert kernels.attends_rows(*parts)
    monkeypatch.setattr("dpr_lightning.engine.attention_blocks._Heads.of", lambda *_: pytest.fail("PyTorch's"))
    result = block_attention(*parts, shape[-1] ** -0.5, seen)
    wide, expected = exact(parts, seen)
    assert result.dtype == torch.bfloat16
    assert off(result, expected) < 4e-3
    for ours, theirs in zip(
        torch.autograd.grad(result, parts, gradient),
        torch.autograd.grad(expected, wide, gradient.double()),
        strict=True,
    ):
        assert ours.shape == theirs.shape
        assert off(ours, theirs) < 5e-3


def test_a_row_is_the_same_to_the_bit_among_others_and_on_more_threads() -> None:
    parts, gradient = given(SHAPES[3])
    threads = torch.get_num_threads()

    def both(rows: slice, count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        try:
            cut = [part.detach()[rows].requires_grad_() for part in parts]
            result = block_attention(*cut, 0.125)
            return [result, *torch.autograd.grad(result, cut, gradient[rows])]
        finally:
            torch.set_num_threads(threads)

    for whole, many, alone in zip(both(slice(None), 1), both(slice(None), 3), both(slice(1, 2), 1), strict=True):
        assert torch.equal(whole, many)
        assert torch.equal(whole[1:2], alone)


def test_what_does_not_fit_is_refused() -> None:
    (query, key, value), gradient = given(SHAPES[2])
    wrong: list[tuple[Any, ...]] = [
        (query, key[:1], value, 1.0, None),
        (query, key, value[:, :1], 1.0, None),
        (query[:, :5], key, value, 1.0, None),
        (query, key[:, :, :9], value[:, :, :9], 1.0, None),
        (query.float(), key.float(), value.float(), 1.0, None),
        (query[..., ::2], key[..., ::2], value[..., ::2], 1.0, None),
        (query, key, value, 1.0, mask(SHAPES[2])[:1]),
        (query, key, value, 1.0, mask(SHAPES[2]).float()),
    ]
    for arguments in wrong:
        with pytest.raises(ValueError, match="does not fit"):
            kernels.attend_rows(*arguments)
    with pytest.raises(ValueError, match="A gradient"):
        kernels.attend_rows_backward(query, key, value, 1.0, None, gradient[:, :3])
