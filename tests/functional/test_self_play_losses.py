"""Self-play losses against their closed forms and against the density ratio that they are said to find."""

import math
from typing import get_args

import pytest
import torch

from dpr_lightning.functional import SelfPlayLoss, self_play_loss

KINDS = get_args(SelfPlayLoss)
RATIO_KINDS = ("bernoulli", "brier", "kliep", "lsif")


@pytest.mark.parametrize("kind", KINDS)
def test_values_by_hand(kind: SelfPlayLoss) -> None:
    scale, shift, chosen, rejected = 0.5, 0.2, 3.0, -1.0
    up, down = scale * chosen + shift, scale * rejected + shift

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = {
        "spin": -math.log(sigmoid(up - down)),
        "dpo": -math.log(sigmoid(up - down)),
        "ipo": (chosen - rejected - 1.0) ** 2,
        "rebel": (chosen - rejected - scale * 6.0) ** 2,
        "bernoulli": -math.log(sigmoid(up)) - math.log(1 - sigmoid(down)),
        "brier": (1 - sigmoid(up)) ** 2 + sigmoid(down) ** 2,
        "hinge": max(0.0, 1 - up) + max(0.0, 1 + down),
        "kliep": math.exp(down) - up,
        "lsif": 0.5 * math.exp(down) ** 2 - math.exp(up),
    }[kind]
    result = self_play_loss(kind, torch.tensor([chosen]), torch.tensor([rejected]), scale, shift, torch.tensor([6.0]))
    assert float(result) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", RATIO_KINDS)
def test_the_minimum_is_the_density_ratio(kind: SelfPlayLoss) -> None:
    """Over a finite set of responses, with a free u for each: u = log p(chosen) / p(rejected)."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.2 for _ in range(2))
    chosen, rejected = chosen / chosen.sum(), rejected / rejected.sum()
    free = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        # Expectations over both distributions: every pair (y, y') with its probability.
        rows, columns = free.repeat_interleave(6), free.repeat(6)
        weight = chosen.repeat_interleave(6) * rejected.repeat(6)
        total = (weight * self_play_loss(kind, rows, columns, 1.0)).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)
    torch.testing.assert_close(free.detach(), (chosen / rejected).log(), atol=1e-5, rtol=0)


def test_spin_does_not_see_the_shift() -> None:
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 4.0])
    plain, shifted = (self_play_loss("spin", chosen, rejected, 0.3, shift) for shift in (0.0, 5.0))
    torch.testing.assert_close(plain, shifted)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_prefers_the_demonstration(kind: SelfPlayLoss) -> None:
    chosen, rejected = (torch.zeros(3, requires_grad=True) for _ in range(2))
    self_play_loss(kind, chosen, rejected, reward_gap=torch.ones(3)).sum().backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


def test_bad_arguments() -> None:
    pair = torch.zeros(2), torch.zeros(2)
    with pytest.raises(ValueError, match="kind"):
        self_play_loss("orpo", *pair)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale"):
        self_play_loss("spin", *pair, scale=0.0)
    with pytest.raises(ValueError, match="rejected has shape"):
        self_play_loss("spin", pair[0], torch.zeros(3))
    with pytest.raises(ValueError, match=r"rebel.*reward_gap"):
        self_play_loss("rebel", *pair)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "rebel"])
def test_float64_stays(kind: SelfPlayLoss) -> None:
    double = torch.zeros(2, dtype=torch.float64)
    assert self_play_loss(kind, double, double, reward_gap=double).dtype == torch.float64


def test_ipo_and_rebel_end_at_their_gaps() -> None:
    """The minimum over x₊ − x₋ is 1/(2τ), and η times the difference of rewards."""
    for kind, gap in (("ipo", 1 / (2 * 0.25)), ("rebel", 0.25 * 3.0)):
        chosen = torch.tensor([gap], dtype=torch.float64)
        assert float(self_play_loss(kind, chosen, 0 * chosen, 0.25, reward_gap=0 * chosen + 3.0)) == 0.0  # type: ignore[arg-type]
