"""Attention in blocks and rotary positions, against PyTorch's attention, transformers' rotation and autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dpr_lightning.engine import attention_blocks as module
from dpr_lightning.engine.attention_blocks import block_attention, rotate, signed_sine

ROWS, HEADS, SHARED, WIDTH = 2, 6, 3, 8


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries)
    shapes = [(ROWS, queries, HEADS, WIDTH), (ROWS, keys, SHARED, WIDTH), (ROWS, keys, SHARED, WIDTH)]
    # As projections leave them: heads behind positions.
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2).to(dtype) for shape in shapes]
    return [part.detach().requires_grad_() for part in parts]


def reference(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    result = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True)
    return result.transpose(1, 2).flatten(2)


def causal(queries: int, keys: int) -> Tensor:
    return torch.ones(ROWS, 1, queries, keys, dtype=torch.bool).tril(keys - queries)


@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (13, 13), (13, 20), (1, 9)])
@pytest.mark.parametrize("padded", [False, True])
def test_values_and_gradients(
    queries: int, keys: int, padded: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    parts = inputs(queries, keys)
    seen = causal(queries, keys)
    if padded:
        seen[0, ..., : keys - queries] = False
        seen[1, :, queries // 2 :, 0] = False
        seen[..., -1, -1] = True  # each sees itself
    result = block_attention(*parts, 0.3, seen if padded else None)  # type: ignore[arg-type]
    expected = reference(*parts, seen)  # type: ignore[arg-type]
    saved = seen.any(-1).squeeze(1).unsqueeze(-1)  # the result of a query without keys is not defined
    torch.testing.assert_close(result * saved, expected * saved, atol=1e-12, rtol=1e-12)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * saved
    for ours, theirs in zip(
        torch.autograd.grad((result * weight).sum(), parts),
        torch.autograd.grad((expected.nan_to_num() * weight).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_a_query_that_sees_nothing_leaves_no_nan() -> None:
    parts = inputs(5, 5)
    seen = causal(5, 5)
    seen[0, :, :2] = False
    result = block_attention(*parts, 0.3, seen)  # type: ignore[arg-type]
    assert result.isfinite().all()
    assert all(part.isfinite().all() for part in torch.autograd.grad(result.sum(), parts))


def test_what_comes_later_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, for any content of later positions."""
    monkeypatch.setattr(module, "_BLOCK", 4)
    query, key, value = (part.detach() for part in inputs(10, 10))
    before = block_attention(query, key, value, 0.3)
    for part in (query, key, value):
        part[:, :, 6:] = 100.0
    assert torch.equal(block_attention(query, key, value, 0.3)[:, :6], before[:, :6])


def test_half_precision_is_near() -> None:
    """As near to float64 as bfloat16 products allow; gradients have the type of their tensors."""
    exact, half = inputs(70, 70), inputs(70, 70, torch.bfloat16)
    weight = torch.randn(ROWS, 70, HEADS * WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = block_attention(*exact, 0.3)  # type: ignore[arg-type]
    result = block_attention(*half, 0.3)  # type: ignore[arg-type]
    theirs = torch.autograd.grad((expected * weight).sum(), exact)
    ours = torch.autograd.grad((result * weight.bfloat16()).sum(), half)
    for one, other in zip((result, *ours), (expected, *theirs), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 1e-2 * other.norm()


def test_only_inputs_are_kept_for_the_backward_pass() -> None:
    saved: list[Tensor] = []
    parts = inputs(70, 70)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        block_attention(*parts, 0.3)  # type: ignore[arg-type]
    assert {tensor.data_ptr() for tensor in saved} == {part.data_ptr() for part in parts}


def test_rotation_is_that_of_transformers() -> None:
    heads: Any = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(2, 5, 4, dtype=torch.float64)
    cosine, sine = (torch.cat([part, part], -1) for part in (angle.cos(), angle.sin()))
    result = rotate(heads, cosine, signed_sine(sine))
    expected, _ = apply_rotary_pos_emb(heads, heads, cosine, sine, unsqueeze_dim=2)
    torch.testing.assert_close(result, expected, atol=1e-14, rtol=1e-14)
    weight = torch.randn(result.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((part * weight).sum(), heads)[0] for part in (result, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("block", [4, 64])
def test_a_mask_shows_no_later_key(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    parts = inputs(13, 20)
    everything = torch.ones(ROWS, 1, 13, 20, dtype=torch.bool)
    assert torch.equal(block_attention(*parts, 0.3, everything), block_attention(*parts, 0.3))
