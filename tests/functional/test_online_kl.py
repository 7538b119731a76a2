"""The hold of HyPO: gradients by enumeration, and what it is for, to the digits."""

import pytest
import torch
from torch import Tensor

from dpr_lightning.functional import kl_divergence, reverse_kl_loss, self_play_loss
from tests.tabular import TinyLanguage

LANGUAGE = TinyLanguage(vocabulary=3, horizon=3)
REFERENCE = torch.tensor([0.45, 0.45, 0.10], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, -5.0], dtype=torch.float64)
BETA = 0.5


def kl(policy: Tensor, reference: Tensor = REFERENCE) -> Tensor:
    return kl_divergence(policy.log(), reference.log())


def value(policy: Tensor) -> float:
    """J = E r − β·KL(π‖π_ref)."""
    return float(policy @ REWARD - BETA * kl(policy))


def minimum(loss, start: float = 0.0) -> float:  # type: ignore[no-untyped-def]
    free = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-14, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        result: Tensor = loss(free)
        result.backward()  # type: ignore[no-untyped-call]
        return result

    optimizer.step(closure)
    return float(free.detach())


def dpo(margin: Tensor) -> Tensor:
    """The loss of infinitely many pairs of answers 1 and 2, labelled by their rewards (Bradley–Terry)."""
    first = torch.sigmoid(REWARD[0] - REWARD[1])
    zero = torch.zeros_like(margin)
    return first * self_play_loss("dpo", margin, zero, BETA) + (1 - first) * self_play_loss("dpo", zero, margin, BETA)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("group_size", [1, 2])
def test_the_expected_gradient_is_that_of_the_kl(exact: bool, group_size: int) -> None:
    table = LANGUAGE.random_logits(0).requires_grad_()
    reference = LANGUAGE.random_logits(1)
    paths = torch.arange(len(LANGUAGE.mask))
    rows = torch.cartesian_prod(*[paths] * group_size).flatten()
    probability = LANGUAGE.path_probability(table).detach()[rows].view(-1, group_size).prod(1)
    by_state = kl_divergence(table.log_softmax(-1), reference.log_softmax(-1))[LANGUAGE.state][rows]
    mask = LANGUAGE.mask[rows]
    loss = reverse_kl_loss(
        LANGUAGE.logprob(table)[rows],
        LANGUAGE.logprob(reference)[rows],
        mask,
        group_size,
        by_state if exact else None,
    )
    (ours,) = torch.autograd.grad((probability * loss.view(-1, group_size).mean(1)).sum(), table)
    log_ratio = (LANGUAGE.logprob(table) - LANGUAGE.logprob(reference)).sum(1)
    (expected,) = torch.autograd.grad((LANGUAGE.path_probability(table) * log_ratio).sum(), table)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


def test_which_estimators_hold_and_which_do_not() -> None:
    """On three arms: k1 by autograd holds nothing, k2 is right, k3 holds the forward KL."""
    logits = torch.tensor([0.7, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    probability = logits.detach().softmax(0)

    def expected_gradient(loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((probability * loss).sum(), logits, retain_graph=True)
        return gradient

    logprob = logits.log_softmax(0)
    ratio = logprob - REFERENCE.log()
    (reverse,) = torch.autograd.grad(kl_divergence(logprob, REFERENCE.log()), logits, retain_graph=True)
    (forward,) = torch.autograd.grad(kl_divergence(REFERENCE.log(), logprob), logits, retain_graph=True)
    one = torch.ones(3, 1, dtype=torch.bool)
    ours = reverse_kl_loss(logprob.unsqueeze(1), REFERENCE.log().unsqueeze(1), one)
    torch.testing.assert_close(expected_gradient(ours), reverse)
    torch.testing.assert_close(expected_gradient(ratio.square() / 2), reverse)
    torch.testing.assert_close(expected_gradient(ratio), torch.zeros_like(reverse), atol=1e-15, rtol=0)
    torch.testing.assert_close(expected_gradient((-ratio).exp() - 1 + ratio), forward)
    assert (reverse - forward).abs().max() > 0.05


def test_dpo_leaves_the_mass_of_uncovered_answers_open() -> None:
    optimum = (REFERENCE.log() + REWARD / BETA).softmax(0)
    assert value(REFERENCE) == pytest.approx(-0.05, abs=5e-5)
    assert value(optimum) == pytest.approx(0.6642, abs=5e-5)
    # Pairs of answers 1 and 2 fix the odds between them alone.
    margin = minimum(lambda free: dpo(free).sum())
    odds = torch.tensor([margin, 0.0], dtype=torch.float64).softmax(0)
    assert odds.tolist() == pytest.approx([0.8808, 0.1192], abs=5e-5)
    expected = {1 - 1e-9: 0.6642, 0.9: 0.1452, 0.5: -2.3970, 0.1: -5.3072, 1e-9: -6.1513}
    for covered, reached in expected.items():
        policy = torch.cat([covered * odds, torch.tensor([1 - covered], dtype=torch.float64)])
        assert value(policy) == pytest.approx(reached, abs=5e-5)


def test_a_vanishing_hold_picks_one_of_them() -> None:
    """λ → 0⁺: among the minima of DPO the one nearest to π_ref; safe, not optimal."""

    def policy(free: Tensor) -> Tensor:
        return (REFERENCE.log() + torch.cat([torch.tensor([2.0, 0.0], dtype=torch.float64), free])).softmax(0)

    picked = policy(torch.tensor([minimum(lambda free: kl(policy(free)))], dtype=torch.float64))
    assert picked.tolist() == pytest.approx([0.7631, 0.1033, 0.1336], abs=5e-5)
    assert value(picked) == pytest.approx(-0.0498, abs=5e-5)
    odds = torch.tensor([0.8808, 0.1192], dtype=torch.float64)
    even = torch.full_like(odds, 0.5)
    covered = 9 * torch.exp(-kl(odds, even))  # s/(1 − s) = s_ref/(1 − s_ref)·e^{−KL(q‖q_ref)}
    assert float(covered / (1 + covered)) == pytest.approx(float(picked[:2].sum()), abs=5e-5)


@pytest.mark.parametrize(
    ("third", "hold", "reached", "distance"),
    [
        (3.0, 0.0, -5.422, 1.85),
        (3.0, 0.01, -5.141, None),
        (3.0, 0.03, -3.464, 0.944),
        (3.0, 0.1, -1.234, 0.202),
        (3.0, 0.3, -0.491, None),
        (3.0, 1.0, -0.192, None),
        (2.0, 0.0, -3.027, None),
        (2.0, 0.1, -1.252, None),
    ],
)
def test_with_shared_features_dpo_moves_mass_to_an_answer_it_never_saw(
    third: float, hold: float, reached: float, distance: float | None
) -> None:
    """Logits log π_ref + θ·f, f = (1, 0, c): the pairs raise θ, and with it the uncovered third answer."""
    features = torch.tensor([1.0, 0.0, third], dtype=torch.float64)

    def policy(free: Tensor) -> Tensor:
        return (REFERENCE.log() + free * features).softmax(0)

    solution = minimum(lambda free: dpo(free).sum() + hold * kl(policy(free)))
    result = policy(torch.tensor([solution], dtype=torch.float64))
    assert value(result) == pytest.approx(reached, abs=5.1e-4)
    if distance is not None:
        assert float(kl(result)) == pytest.approx(distance, abs=5e-3)
    if (third, hold) == (3.0, 0.0):
        assert solution == pytest.approx(2.0, abs=1e-6)
        assert result.tolist() == pytest.approx([0.075, 0.010, 0.914], abs=5e-4)
        best = minimum(lambda free: -(policy(free) @ REWARD - BETA * kl(policy(free))))
        assert best == pytest.approx(-0.579, abs=5e-4)
        assert value(policy(torch.tensor([best], dtype=torch.float64))) == pytest.approx(0.186, abs=5e-4)
