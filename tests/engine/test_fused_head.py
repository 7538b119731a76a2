"""The fused head against autograd on whole logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning import functional as F
from dpr_lightning.engine import fused_head as head
from dpr_lightning.engine.fused_head import Part, head_logprobs, head_loss
from dpr_lightning.live_bytes import LiveBytes

N, D, V = 37, 5, 23


@pytest.fixture(autouse=True, params=[2 * V, 1 << 19], ids=["in strips", "at once"])
def _strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of the logits is worked on at a time."""
    monkeypatch.setattr(head, "_STRIP", request.param)


def set_block(monkeypatch: pytest.MonkeyPatch, block: int | None) -> None:
    """Set the logits of a block."""
    if block is not None:
        monkeypatch.setattr(head, "_BLOCK", block)


def inputs(dtype: torch.dtype = torch.float64, rows: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (rows,), generator=generator)


def constant(logprob: Tensor, part: Part) -> Tensor:
    weights = torch.linspace(-1.0, 2.0, N, dtype=logprob.dtype)
    return -(weights[part.rows] * logprob).sum()


def clipped(logprob: Tensor, part: Part) -> Tensor:
    """The surrogate of DPR, whose weights hang on the log-probability themselves."""
    generator = torch.Generator().manual_seed(1)
    old, advantage = (torch.randn(N, generator=generator, dtype=logprob.dtype)[part.rows] for _ in range(2))
    bounded = F.bound_unlikelihood(advantage, logprob, 0.05)
    acted = torch.ones(1, len(logprob), dtype=torch.bool)
    return F.clipped_surrogate_loss(logprob[None], (old - 3.0)[None], bounded[None], acted, 1.0, 0.2)[0]


def weighted_by_itself(logprob: Tensor, part: Part) -> Tensor:
    return F.dft_loss(logprob[None], torch.ones(1, len(logprob), dtype=torch.bool), 7.0)


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor, token_loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    logprobs = (hidden @ weight.T).log_softmax(-1)
    logprob = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    return token_loss(logprob, Part(slice(0, len(tokens)), logprobs.detach().amax(-1))), logprob, F.entropy(logprobs)


@pytest.mark.parametrize("token_loss", [constant, clipped, weighted_by_itself])
@pytest.mark.parametrize("block", [1, 5 * V, None])
def test_it_is_autograd_on_whole_logits(token_loss: Any, block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, block)
    hidden, weight, tokens = inputs()
    expected = plain(hidden, weight, tokens, token_loss)
    expected_grads = torch.autograd.grad(3.0 * expected[0], (hidden, weight))
    result = head_loss(hidden, weight, tokens, token_loss)
    gradients = torch.autograd.grad(3.0 * result.loss, (hidden, weight))
    for ours, theirs in zip((*result[:3], *gradients), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert not result.logprob.requires_grad
    assert not result.entropy.requires_grad


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, tokens = inputs()
    expected = torch.autograd.grad(plain(hidden, weight, tokens, constant)[0], hidden)[0]
    result = head_loss(hidden, weight.detach(), tokens, constant)
    torch.testing.assert_close(torch.autograd.grad(result.loss, hidden)[0], expected, atol=1e-12, rtol=1e-12)


def divergence(logprobs: Tensor, part: slice) -> Tensor:
    """What all-actions policy gradients weigh every token with: a reward, less a hold that depends on the policy."""
    generator = torch.Generator().manual_seed(2)
    reward, other = (torch.randn(N, V, generator=generator, dtype=logprobs.dtype)[part] for _ in range(2))
    return reward - 0.5 * (logprobs - other.log_softmax(-1))


@pytest.mark.parametrize("block", [1, 5 * V, None])
def test_values_of_every_token_are_autograd_on_whole_logits(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, None if block is None else head._WITH_VALUES * block)
    hidden, weight, tokens = inputs()
    logprobs = (hidden @ weight.T).log_softmax(-1)
    values = divergence(logprobs, slice(0, N))
    every = F.all_actions_loss(logprobs[None], values[None], torch.ones(1, N, dtype=torch.bool), 1.0)
    expected = constant(logprobs.gather(-1, tokens[:, None]).squeeze(-1), Part(slice(0, N), logprobs.amax(-1))) + every
    expected_grads = torch.autograd.grad(3.0 * expected, (hidden, weight))
    result = head_loss(hidden, weight, tokens, constant, divergence)
    gradients = torch.autograd.grad(3.0 * result.loss, (hidden, weight))
    for ours, theirs in zip((result.loss, *gradients), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(result.entropy, F.entropy(logprobs), atol=1e-12, rtol=1e-12)


def test_a_token_that_cannot_be_chosen_adds_nothing_whatever_its_value() -> None:
    hidden, weight, tokens = inputs()
    with torch.no_grad():
        hidden[:, 0], weight[3, 0] = 1.0, -1e30  # e^−1e30 is 0
    safe = tokens.masked_fill(tokens == 3, 4)

    def infinite(logprobs: Tensor, part: slice) -> Tensor:
        return divergence(logprobs, part).index_fill(-1, torch.tensor([3]), float("inf"))

    result = head_loss(hidden, weight, safe, constant, infinite)
    gradients = torch.autograd.grad(result.loss, (hidden, weight))
    assert result.loss.isfinite()
    assert all(bool(part.isfinite().all()) for part in gradients)


@pytest.mark.parametrize("block", [1, 5 * V, None])
def test_logprobs_without_a_loss(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, block)
    hidden, weight, tokens = inputs()
    result = head_logprobs(hidden, weight, tokens)
    expected = plain(hidden, weight, tokens, constant)[1]
    torch.testing.assert_close(result, expected.detach(), atol=1e-12, rtol=1e-12)
    assert not result.requires_grad
    half = head_logprobs(hidden.bfloat16(), weight.bfloat16(), tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), expected.detach(), atol=0.1, rtol=0.05)
    with pytest.raises(ValueError, match="tokens"):
        head_logprobs(hidden, weight, tokens[:-1])


def test_nothing_is_wrong_with_no_token() -> None:
    hidden, weight, tokens = inputs(rows=0)
    loss = head_loss(hidden, weight, tokens, lambda logprob, _: logprob.sum()).loss
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_a_row_without_gradient_adds_nothing_even_when_it_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 3 * V)
    hidden, weight, tokens = inputs()
    with torch.no_grad():
        hidden[4] = float("inf")

    def without(logprob: Tensor, part: Part) -> Tensor:
        saved = torch.arange(N)[part.rows] != 4
        return logprob[saved].sum()

    head_loss(hidden, weight, tokens, without).loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad[4] == 0).all()
    assert weight.grad.isfinite().all()


def test_half_precision_is_as_near_as_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 4 * V)
    hidden, weight, tokens = inputs(torch.bfloat16)
    result = head_loss(hidden, weight, tokens, constant)
    gradients = torch.autograd.grad(result.loss, (hidden, weight))
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    expected = torch.autograd.grad(plain(exact[0], exact[1], tokens, constant)[0], exact)
    assert result.logprob.dtype == torch.float32
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.cosine_similarity(ours.double().flatten(), theirs.flatten(), dim=0) > 0.9999


def test_under_autocast_gradients_have_the_type_of_the_weights() -> None:
    hidden, weight, tokens = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, weight, tokens, constant).loss
    gradients = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.autograd.grad(plain(hidden, weight, tokens, constant)[0], (hidden, weight))
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_it_takes_six_operations_a_weight_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 5 * V)
    hidden, weight, tokens = inputs()
    with FlopCounterMode(display=False) as counter:
        head_loss(hidden, weight, tokens, constant).loss.backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == 6 * N * V * D


def test_memory_is_a_few_blocks_however_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 64_000)
    peaks = []
    for rows in (256, 2048):
        hidden = torch.randn(rows, 4, requires_grad=True)
        weight = torch.randn(1000, 4, requires_grad=True)
        with LiveBytes() as live:
            loss = head_loss(hidden, weight, torch.zeros(rows, dtype=torch.long), lambda p, _: p.sum())
            peaks.append(live.peak - hidden.numel() * 4 - weight.numel() * 4)
        del loss
    block = 64_000 * 4
    assert peaks[0] < 4 * block
    assert peaks[1] - peaks[0] < block / 2
    assert 8 * peaks[1] < 2048 * 1000 * 4


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((N, D), (V, D + 1), (N,)), "weight"),
        (((N, D), (V, D), (N + 1,)), "tokens"),
        (((1, N, D), (V, D), (N,)), "hidden"),
    ],
)
def test_shapes_that_do_not_fit(shapes: Any, says: str) -> None:
    hidden, weight, tokens = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=says):
        head_loss(hidden, weight, tokens.long(), constant)
