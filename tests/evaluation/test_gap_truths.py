"""Where a global reward model and then reinforcement gain over DPO on the same pairs, and where they cannot: exactly.

Tables in float64 and sums over all responses; the losses are the package's. Source: Swamy et al. 2025 (paper),
arXiv:2503.01067; the worlds and their digits: ours, of an independent program.
"""

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from dpr_lightning.functional import self_play_loss
from tests.tabular import TinyLanguage

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Prompt, chosen and rejected response of each pair."""


def fit(loss: Callable[[Tensor], Tensor], count: int, iterations: int = 300, tolerance: float = 1e-9) -> Tensor:
    """The parameters [count] of the smallest loss, by L-BFGS from 0."""

    def value_and_gradient(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(values).requires_grad_()
        value = loss(parameters)
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.numpy()

    options = {"maxiter": iterations, "ftol": tolerance, "gtol": 1e-5 if tolerance == 1e-9 else 1e-12}
    result = minimize(value_and_gradient, np.zeros(count), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(result.x)


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float = 1.0) -> Tensor:
    """Bradley–Terry of scores, and DPO of log-ratios: one function."""
    return self_play_loss("dpo", chosen, rejected, beta).mean()


# The two roads are one where both classes hold the same functions.


def test_a_tabular_reward_model_and_its_soft_optimum_are_dpo() -> None:
    """Over all paths of a small language: both orders of each pair, and one ridge on the reward."""
    language, beta = TinyLanguage(vocabulary=3, horizon=3), 0.7
    sft = language.logprob(language.random_logits(0)).sum(1)
    truth = torch.randn(len(sft), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = torch.tensor(list(permutations(range(len(sft)), 2))).T
    right = torch.sigmoid(truth[first] - truth[second])

    def loss(reward: Tensor, scale: float) -> Tensor:
        pairs = self_play_loss("dpo", reward[first] / scale, reward[second] / scale, scale)
        return (right * pairs).mean() + 1e-3 * (reward - reward.mean()).square().sum()

    reward = fit(partial(loss, scale=1.0), len(sft), 2000, 1e-16)
    optimum = (sft + reward / beta).log_softmax(0)

    def policy_of(logits: Tensor) -> Tensor:
        return language.logprob(logits.view(language.states, 3)).sum(1)

    logits = fit(lambda logits: loss(beta * (policy_of(logits) - sft), beta), language.states * 3, 4000, 1e-16)
    torch.testing.assert_close(policy_of(logits).exp(), optimum.exp(), atol=1e-8, rtol=0.0)
    assert (optimum.exp() - sft.exp()).abs().max() > 0.05


# What a class says of prompts without pairs decides: answers of six bits, of which the reverse of the prompt is right.

BITS = 6
COUNT = 2**BITS
STRINGS = (torch.arange(COUNT)[:, None] >> torch.arange(BITS - 1, -1, -1)) & 1
MATCHES = (STRINGS[None] == STRINGS.flip(1)[:, None]).sum(2).double()
RIGHT = MATCHES.argmax(1)
FEATURES = torch.stack(
    [MATCHES, (STRINGS[None] == STRINGS[:, None]).sum(2).double(), STRINGS.sum(1).double().expand(COUNT, COUNT)], 2
)
CENTRED = FEATURES - FEATURES.mean(1, keepdim=True)


def labelled(generator: np.random.Generator, seen: NDArray[np.int64], reward: Tensor, number: int) -> Pairs:
    """Pairs of two responses, with labels of Bradley–Terry."""
    rows, values = [], reward.numpy()
    for _ in range(number):
        prompt = generator.choice(seen)
        first, second = generator.choice(COUNT, 2, replace=False)
        if generator.random() > 1 / (1 + np.exp(values[prompt, second] - values[prompt, first])):
            first, second = second, first
        rows.append((prompt, first, second))
    prompts, chosen, rejected = np.array(rows).T
    return prompts, chosen, rejected


def with_features(pairs: Pairs) -> Tensor:
    """A reward model of three numbers, [prompts, responses]."""
    prompts, chosen, rejected = pairs
    better, worse = CENTRED[prompts, chosen], CENTRED[prompts, rejected]
    weights = fit(lambda weight: preference_loss(better @ weight, worse @ weight) + 1e-4 * weight @ weight, 3)
    return CENTRED @ weights


def with_table(pairs: Pairs) -> Tensor:
    """A reward model with a number for each response to each prompt, which tabular DPO is too."""
    prompts, chosen, rejected = pairs

    def loss(values: Tensor) -> Tensor:
        table = values.view(COUNT, COUNT)
        return preference_loss(table[prompts, chosen], table[prompts, rejected]) + 1e-6 * values @ values

    return fit(loss, COUNT * COUNT, 500).view(COUNT, COUNT)


def of_target(reward: Tensor, prompts: NDArray[np.int64]) -> float:
    """Mean probability of the right response under the soft optimum at β = 1."""
    return float(reward.softmax(1)[prompts, RIGHT[prompts]].mean())


def split(seed: int) -> tuple[np.random.Generator, NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    seen = generator.permutation(COUNT)[: COUNT // 2]
    return generator, seen, np.setdiff1d(np.arange(COUNT), seen)


@pytest.mark.parametrize(("number", "simple", "tabular"), [(32, 0.660, 0.032), (128, 0.538, 0.025)])
def test_a_simple_reward_model_generalises_where_a_table_cannot(number: int, simple: float, tabular: float) -> None:
    results = []
    for seed in range(5):
        generator, seen, unseen = split(seed)
        pairs = labelled(generator, seen, 2.0 * MATCHES, number)
        reward, table = with_features(pairs), with_table(pairs)
        assert (reward.argmax(1) == RIGHT)[unseen].all()
        results.append([of_target(*each) for each in ((reward, unseen), (table, unseen), (table, seen))])
    means = np.mean(results, 0)
    assert means == pytest.approx([simple, 1 / COUNT, tabular], abs=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "simple", "tabular"), [(512, 0.445, 0.056), (4096, 0.458, 0.151)])
def test_more_pairs_do_not_help_the_table(number: int, simple: float, tabular: float) -> None:
    test_a_simple_reward_model_generalises_where_a_table_cannot(number, simple, tabular)


# One class of policies for both roads: subset sums of eight numbers, where checking is a sum and writing is a search.

HORIZON = 8
SUBSETS = ((torch.arange(2**HORIZON)[:, None] >> torch.arange(HORIZON - 1, -1, -1)) & 1).double()
BETA, LABEL_SCALE, RIDGE = 0.25, 4.0, 1e-4


class World(NamedTuple):
    """Prompts of subset sums: ``steps`` [P, N, H, 9] what the policy reads before each bit, ``whole`` [P, N, 3] what
    the reward model reads, ``hit`` [P, N] whether the sum is right."""

    steps: Tensor
    whole: Tensor
    hit: Tensor

    def logprob(self, weights: Tensor, prompts: Tensor, responses: Tensor) -> Tensor:
        """log π of the responses to some prompts, [n]."""
        logits = self.steps[prompts, responses] @ weights
        return -torch.nn.functional.softplus(torch.where(SUBSETS[responses] > 0, -logits, logits)).sum(-1)

    def everywhere(self, weights: Tensor) -> Tensor:
        """log π of all responses to all prompts, [P, N]."""
        logits = self.steps @ weights
        return -torch.nn.functional.softplus(torch.where(SUBSETS > 0, -logits, logits)).sum(-1)

    def success(self, weights: Tensor) -> float:
        """Mean probability of a right response."""
        return float((self.everywhere(weights).exp() * self.hit).sum(1).mean())


def subset_sums(prompts: int, seed: int) -> World:
    generator, subsets = np.random.default_rng(seed), SUBSETS.numpy()
    weights = generator.integers(1, 10, size=(prompts, HORIZON))
    targets = np.array([row @ subsets[generator.integers(1, 2**HORIZON - 1)] for row in weights])
    chosen = weights[:, None] * subsets[None]
    before = np.cumsum(np.concatenate([np.zeros((prompts, len(subsets), 1)), chosen[:, :, :-1]], 2), 2)
    missing = targets[:, None, None] - before
    so_far = np.cumsum(np.concatenate([np.zeros((prompts, 1)), weights[:, :-1]], 1), 1)
    left = np.broadcast_to((weights.sum(1)[:, None] - so_far)[:, None], missing.shape)
    here = np.broadcast_to(weights[:, None], missing.shape).astype(float)
    steps = [
        *(np.ones_like(missing), here / 9, missing / 10, np.clip(missing / left, -1, 2)),
        *((missing >= here) * 1.0, (missing == here) * 1.0, (missing > 0) * 1.0, (missing - here) / 10),
        np.clip((missing - here) / np.maximum(left - here, 1), -1, 2),
    ]
    error = np.abs(chosen.sum(2) - targets[:, None])
    whole = [-error / 5, (error == 0) * 1.0, np.broadcast_to(subsets.sum(1) / 4, error.shape)]
    stacked = [torch.from_numpy(np.stack(parts, -1)) for parts in (steps, whole)]
    return World(stacked[0], stacked[1], torch.from_numpy(error == 0).double())


def subset_pairs(world: World, number: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of which half have a right response, with labels of Bradley–Terry on 4·(right − right)."""
    prompts = generator.integers(len(world.hit), size=number)
    first, second = (generator.integers(2**HORIZON, size=number) for _ in range(2))
    for row in np.where(generator.random(number) < 0.5)[0]:
        first[row] = generator.choice(np.where(world.hit[prompts[row]] > 0)[0])
    hit = world.hit.numpy()
    gap = LABEL_SCALE * (hit[prompts, first] - hit[prompts, second])
    swapped = generator.random(number) > 1 / (1 + np.exp(-gap))
    chosen, rejected = np.where(swapped, second, first), np.where(swapped, first, second)
    return torch.from_numpy(prompts), torch.from_numpy(chosen), torch.from_numpy(rejected)


def reward_model(world: World, prompts: Tensor, chosen: Tensor, rejected: Tensor, ridge: float = RIDGE) -> Tensor:
    better, worse = world.whole[prompts, chosen], world.whole[prompts, rejected]
    return fit(lambda weight: preference_loss(better @ weight, worse @ weight) + ridge * weight @ weight, 3)


def dpo(world: World, prompts: Tensor, chosen: Tensor, rejected: Tensor, ridge: float = RIDGE) -> Tensor:
    count = world.steps.shape[-1]
    start = [world.logprob(torch.zeros(count, dtype=torch.float64), prompts, each) for each in (chosen, rejected)]

    def loss(weights: Tensor) -> Tensor:
        ratios = [world.logprob(weights, prompts, each) for each in (chosen, rejected)]
        return preference_loss(ratios[0] - start[0], ratios[1] - start[1], BETA) + ridge * weights @ weights

    return fit(loss, count)


def reinforce(world: World, reward: Tensor, ridge: float = RIDGE) -> Tensor:
    """The policy of the class with the highest E[reward] − β·KL to the uniform one."""
    uniform = -HORIZON * float(np.log(2.0))

    def loss(weights: Tensor) -> Tensor:
        logprob = world.everywhere(weights)
        value = (logprob.exp() * (reward - BETA * (logprob - uniform))).sum(1).mean()
        return ridge * weights @ weights - value

    return fit(loss, world.steps.shape[-1])


def subset_results(number: int, draws: range) -> NDArray[np.float64]:
    """Means over draws of pairs: success of DPO, of the reward model's optimum, and of the best of 16 by these two and
    by the truth."""
    train, test, results = subset_sums(60, 0), subset_sums(200, 1), []
    rows = torch.arange(len(test.hit))
    for seed in draws:
        generator = np.random.default_rng(seed)
        pairs = subset_pairs(train, number, generator)
        scorer, local = reward_model(train, *pairs), dpo(train, *pairs)
        online = reinforce(train, train.whole @ scorer)
        samples = torch.from_numpy(generator.integers(2**HORIZON, size=(len(test.hit), 16)))
        each = rows[:, None]
        best = [
            test.hit[rows, samples[rows, scores[each, samples].argmax(1)]].mean()
            for scores in (test.whole @ scorer, test.everywhere(local), test.hit)
        ]
        results.append([test.success(local), test.success(online), *map(float, best)])
    return np.mean(results, 0)


def test_subset_sums_have_a_gap() -> None:
    """In one class of policies, with the same pairs: the sum is easy to check, and its bits are not easy to write."""
    local, online, by_scorer, by_local, by_truth = subset_results(256, range(5))
    assert (local, online) == pytest.approx((0.275, 0.399), abs=2e-3)
    assert by_scorer == by_truth > by_local + 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "local", "online"), [(64, 0.245, 0.419), (1024, 0.291, 0.402), (8192, 0.292, 0.398)]
)
def test_more_pairs_do_not_close_it(number: int, local: float, online: float) -> None:
    assert subset_results(number, range(5))[:2] == pytest.approx([local, online], abs=2e-3)


# Null controls: a gap here would be one of the method.


def test_one_token_answers_have_none() -> None:
    """A reward for each of twelve tokens after each of five prompts, and a logit for each."""
    generator = torch.Generator().manual_seed(0)
    sft, truth = (torch.randn(5, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    sft = sft.log_softmax(1)
    chosen, rejected = (torch.randint(12, (5, 80), generator=generator) for _ in range(2))
    swapped = truth.gather(1, chosen) < truth.gather(1, rejected)
    chosen, rejected = torch.where(swapped, rejected, chosen), torch.where(swapped, chosen, rejected)

    def loss(reward: Tensor, scale: float = 1.0) -> Tensor:
        pairs = preference_loss(reward.gather(1, chosen) / scale, reward.gather(1, rejected) / scale, scale)
        return pairs + 1e-3 * (reward - reward.mean(1, keepdim=True)).square().sum()

    reward = fit(lambda values: loss(values.view(5, 12)), 60, 2000, 1e-16).view(5, 12)
    online = (sft + reward / BETA).softmax(1)

    def policy_of(logits: Tensor) -> Tensor:
        return logits.view(5, 12).log_softmax(1)

    offline = policy_of(fit(lambda logits: loss(BETA * (policy_of(logits) - sft), BETA), 60, 4000, 1e-16)).exp()
    right = truth.argmax(1, keepdim=True)
    gap = (online - offline).gather(1, right).mean()
    assert abs(float(gap)) < 1e-6
    assert float(online.gather(1, right).mean()) > float(sft.exp().gather(1, right).mean()) + 0.2


def both_roads(train: World, test: World, seed: int, ridge: float = 0.0) -> tuple[float, float]:
    """Success of DPO, and of the optimum of a reward model, from the same 512 pairs."""
    pairs = subset_pairs(train, 512, np.random.default_rng(seed))
    scorer, local = reward_model(train, *pairs, ridge), dpo(train, *pairs, ridge)
    return test.success(local), test.success(reinforce(train, train.whole @ scorer, ridge))


def test_rewards_that_a_local_policy_can_write_have_none() -> None:
    """Sums over bits of features that no earlier bit changes: the best policy decides bit for bit."""

    def world(prompts: int, seed: int) -> World:
        generator = np.random.default_rng(seed)
        features = torch.from_numpy(generator.normal(size=(prompts, 1, HORIZON, 3))).expand(-1, 2**HORIZON, -1, -1)
        whole = (features * SUBSETS[..., None]).sum(2)
        best = (whole @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)).argmax(1)
        return World(features, whole, torch.nn.functional.one_hot(best, 2**HORIZON).double())

    train, test = world(60, 0), world(200, 1)
    local, online = both_roads(train, test, 0)
    assert abs(online - local) < 1e-3
    assert local > 10 / 2**HORIZON


def test_hidden_targets_have_none() -> None:
    """Where nothing tells a right response, there is nothing to verify either: both stay at chance."""

    def world(prompts: int, seed: int) -> World:
        hidden = torch.from_numpy(np.random.default_rng(seed + 7).integers(2**HORIZON, size=prompts))
        return subset_sums(prompts, seed)._replace(hit=torch.nn.functional.one_hot(hidden, 2**HORIZON).double())

    results = np.array([both_roads(world(60, 0), world(200, 1), seed, RIDGE) for seed in range(3)])
    assert np.abs(results - 1 / 2**HORIZON).max() < 3e-3
