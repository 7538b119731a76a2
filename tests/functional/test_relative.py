"""REBEL's regression against what is known exactly: mirror descent, policy and natural gradients, contraction."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dpr_lightning.evaluation.preview import optimum_weights
from dpr_lightning.functional import relative_reward_loss, win_rates
from dpr_lightning.modules import CreditSpec, estimate_advantages
from dpr_lightning.types import RolloutBatch
from tests.tabular import TinyLanguage

LANGUAGE = TinyLanguage(vocabulary=3, horizon=3)
START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fitted(logprob: Callable[[Tensor], Tensor], weights: Tensor, target: Tensor, eta: float) -> tuple[Tensor, float]:
    """The parameters at the minimum over all pairs of responses, weighed by π_start, and the loss there."""
    start = logprob(weights).detach()
    probability = start.exp()
    pairs = torch.cartesian_prod(*[torch.arange(len(start))] * 2)
    of_pair = probability[pairs].prod(1)
    free = weights.detach().clone().requires_grad_()
    options = {"tolerance_grad": 1e-14, "tolerance_change": 1e-30, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([free], max_iter=2000, history_size=50, **options)  # type: ignore[arg-type]

    def loss() -> Tensor:
        optimizer.zero_grad()
        ratio = logprob(free) - start
        value = (of_pair * relative_reward_loss(ratio[pairs], target[pairs], eta)).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)
    return free.detach(), float(loss().detach())


def bandit(logits: Tensor) -> Tensor:
    return logits.log_softmax(0)


@pytest.mark.parametrize("responses", [2, 3, 5])
def test_it_is_the_mean_over_all_pairs(responses: int) -> None:
    ratio, reward = normal(4, responses), normal(4, responses, seed=1)
    difference = ratio - 0.7 * reward
    i, j = torch.triu_indices(responses, responses, 1)
    expected = (difference[:, i] - difference[:, j]).square().mean(1)
    result = relative_reward_loss(ratio, reward, 0.7)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    half = relative_reward_loss(ratio.bfloat16(), reward.bfloat16(), 0.7)
    assert half.dtype == torch.float32


def test_what_it_refuses() -> None:
    two = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="at least two responses"):
        relative_reward_loss(two[:, :1], two[:, :1], 1.0)
    for eta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="eta is"):
            relative_reward_loss(two, two, eta)
    with pytest.raises(ValueError, match="reward has shape"):
        relative_reward_loss(two, torch.zeros(3, 3), 1.0)


def test_exact_steps_are_mirror_descent() -> None:
    expected = [
        ([0.32504, 0.32154, 0.35342], 1.02838),
        ([0.17900, 0.29194, 0.52906], 1.35006),
        ([0.08530, 0.22937, 0.68532], 1.60002),
    ]
    logits = START
    for step, (policy, value) in enumerate(expected, 1):
        logits, _ = fitted(bandit, logits, REWARD, 0.5)
        probability = logits.softmax(0)
        torch.testing.assert_close(probability, (START + 0.5 * step * REWARD).softmax(0), atol=1e-12, rtol=0)
        torch.testing.assert_close(probability, torch.tensor(policy, dtype=torch.float64), atol=5e-6, rtol=0)
        assert float(probability @ REWARD) == pytest.approx(value, abs=5e-6)


def test_a_language_is_fitted_to_the_last_digit() -> None:
    def logprob(table: Tensor) -> Tensor:
        return LANGUAGE.logprob(table).sum(1)

    table, reward = LANGUAGE.random_logits(0), normal(len(LANGUAGE.mask), seed=3)
    start = logprob(table)
    result, loss = fitted(logprob, table, reward, 1.0)
    assert loss < 1e-20
    torch.testing.assert_close(logprob(result).exp(), (start + reward).softmax(0), atol=1e-9, rtol=0)


def test_sampled_pairs_reach_the_third_step() -> None:
    def logprob(table: Tensor) -> Tensor:
        return LANGUAGE.logprob(table).sum(1)

    generator = torch.Generator().manual_seed(10)
    reward, eta = normal(len(LANGUAGE.mask), seed=1), 0.5
    distance = {}
    for count in (64, 512):  # the exact third step is nearer, the more pairs connect the responses
        table = torch.zeros(LANGUAGE.states, LANGUAGE.vocabulary, dtype=torch.float64)
        expected = (logprob(table) + 3 * eta * reward).softmax(0)
        for _ in range(3):
            start = logprob(table).detach()
            pairs = torch.multinomial(start.exp(), 2 * count, replacement=True, generator=generator).view(-1, 2)
            different, number = pairs.unique(dim=0, return_counts=True)
            table = table.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([table], lr=0.03)
            for _ in range(300):
                optimizer.zero_grad()
                ratio = logprob(table) - start
                losses = relative_reward_loss(ratio[different], reward[different], eta)
                (losses @ number.double() / count).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        distance[count] = float(0.5 * (logprob(table).detach().exp() - expected).abs().sum())
    assert distance[512] < 1e-3
    assert distance[64] < 0.02


@pytest.mark.parametrize("responses", [2, 3, 5])
def test_at_the_start_it_is_leave_one_out_reinforce(responses: int) -> None:
    """∇loss = −4η·∇J of the same samples, with the advantages of sentence-level REINFORCE."""
    table = LANGUAGE.random_logits(1).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    rows = torch.multinomial(LANGUAGE.path_probability(table.detach()), 4 * responses, True, generator=generator)
    mask, eta = LANGUAGE.mask[rows], 0.7
    reward = normal(*mask.shape, seed=3).masked_fill(~mask, 0.0)
    logprob = LANGUAGE.logprob(table)[rows]
    ratio = (logprob - logprob.detach()).sum(1).view(-1, responses)
    (ours,) = torch.autograd.grad(
        relative_reward_loss(ratio, reward.sum(1).view(-1, responses), eta).mean(), table, retain_graph=True
    )
    none = torch.zeros_like(reward)
    rollout = RolloutBatch(
        rows, mask, mask[:, 0], rows, logprob.detach(), none, none, reward, none, mask.sum().double()
    )
    credit = CreditSpec(level="sentence", baseline="leave_one_out")
    advantage = estimate_advantages(rollout, mask, credit, kl_coefficient=0.0, group_size=responses)
    (reinforce,) = torch.autograd.grad((advantage * logprob).sum() / len(rows), table)
    torch.testing.assert_close(ours, -4 * eta * reinforce, atol=1e-12, rtol=0)


def test_linearised_it_is_the_natural_gradient() -> None:
    """Five arms, two features: the minimum over linear log-ratios is η·F⁻¹∇J."""
    features, weights, reward, eta = normal(5, 2), normal(2, seed=1), normal(5, seed=2), 0.3
    probability = (features @ weights).softmax(0)
    centred = features - probability @ features
    fisher, gradient = centred.T @ (probability[:, None] * centred), centred.T @ (probability * reward)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))

    def loss(step: Tensor) -> Tensor:
        ratio = centred @ step
        return (probability[pairs].prod(1) * relative_reward_loss(ratio[pairs], reward[pairs], eta)).sum()

    zero = torch.zeros(2, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, zero)
    curvature = torch.autograd.functional.hessian(loss, zero)
    step = -torch.linalg.solve(curvature, slope)
    torch.testing.assert_close(step, eta * torch.linalg.solve(fisher, gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0, 3.0])
def test_a_hold_within_the_reward_contracts(eta: float) -> None:
    """With R − λ·(log π_t − log π_SFT) the distance to π* shrinks by 1 − ηλ: to nothing in one step at ηλ = 1."""
    hold = 0.5
    optimum = (START + REWARD / hold).log_softmax(0)
    torch.testing.assert_close(
        optimum.exp(), torch.tensor([0.036667, 0.162559, 0.800774], dtype=torch.float64), atol=5e-7, rtol=0
    )

    def centred(logits: Tensor) -> Tensor:
        return logits - logits.mean()

    logits = START
    for _ in range(2):
        before = centred(logits - optimum)
        reward = REWARD - hold * (logits.log_softmax(0) - START)
        logits, _ = fitted(bandit, logits, reward, eta)
        torch.testing.assert_close(centred(logits - optimum), (1 - eta * hold) * before, atol=1e-7, rtol=0)


def test_one_step_ends_at_the_optimum_of_the_preview() -> None:
    """η = 1/β, no KL in the reward. Of a uniform policy every response is sampled as often as it is probable."""
    table = torch.zeros(LANGUAGE.states, LANGUAGE.vocabulary, dtype=torch.float64)
    reward, beta = normal(len(LANGUAGE.mask), seed=5), 0.5
    copies = LANGUAGE.vocabulary ** (LANGUAGE.horizon - LANGUAGE.mask.sum(1))
    samples = torch.arange(len(reward)).repeat_interleave(copies)
    weights = optimum_weights(reward[samples].numpy()[None], beta)[0]
    preview = torch.zeros_like(reward).index_add_(0, samples, torch.from_numpy(weights))
    result, _ = fitted(lambda free: LANGUAGE.logprob(free).sum(1), table, reward, 1 / beta)
    torch.testing.assert_close(LANGUAGE.path_probability(result), preview, atol=1e-9, rtol=0)


def test_win_rates() -> None:
    score = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    sigmoid = torch.sigmoid
    expected = [sigmoid(score[0, i] - score[0, [j for j in range(3) if j != i]]).mean() for i in range(3)]
    torch.testing.assert_close(win_rates(score)[0], torch.stack(expected))
    assert float(win_rates(score).mean()) == pytest.approx(0.5)
