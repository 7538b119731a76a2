"""Policy gradients and optima against a language small enough to write out completely."""

import pytest
import torch

from dpr_lightning import functional as F
from tests.tabular import TinyLanguage

LANGUAGE = TinyLanguage()
POLICY, SFT, REFERENCE = (LANGUAGE.random_logits(seed) for seed in (0, 1, 2))
BETA = 0.4
MASK = LANGUAGE.mask


def close(left, right, tolerance=1e-12):
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def path_logprob(table, language=LANGUAGE):
    """log π of every path's tokens through the package's own functions."""
    return F.token_logprobs(language.logits(table), language.tokens)


def path_reward(table, language=LANGUAGE, sft=SFT, ref=REFERENCE, beta=BETA):
    """r̂ − β·log(π/π_SFT) along every path."""
    sft_logprob = path_logprob(sft, language)
    dense = F.baseline_relative_reward(sft_logprob, path_logprob(ref, language)[None])
    return dense - beta * (path_logprob(table, language) - sft_logprob)


def token_reward(table):
    """The same for every token of every state, [states, V]."""
    policy, sft, ref = (x.log_softmax(-1) for x in (table, SFT, REFERENCE))
    return sft - ref - BETA * (policy - sft)


def gradient(loss, table):
    return torch.autograd.grad(loss, table)[0]


def policy_table():
    return POLICY.clone().requires_grad_()


def expected_gradient(table, advantage):
    """Expectation of the REINFORCE gradient over every path; the loss is linear in the advantage."""
    probability = LANGUAGE.path_probability(table).detach()
    return gradient(F.reinforce_loss(path_logprob(table), probability[:, None] * advantage, MASK, 1.0), table)


def test_the_paths_are_all_there():
    assert len(LANGUAGE.tokens) == 15
    close(LANGUAGE.path_probability(POLICY).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert LANGUAGE.terminated.sum() == 7


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_reward_to_go_has_the_exact_expected_gradient(discount):
    table = policy_table()
    returns = F.returns_to_go(path_reward(table).detach(), MASK, discount)
    exact = LANGUAGE.reward_to_go_gradient(table, token_reward(table), discount)
    assert exact.abs().max() > 0.01
    close(expected_gradient(table, returns), -exact)


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_weighing_reward_to_go_by_the_discount_is_the_gradient_of_the_objective(discount):
    """Autograd through J = E Σ γ^t (r̂ − β log(π/π_SFT)), the policy inside the reward included."""
    table = policy_table()
    exact = gradient(LANGUAGE.objective(table, path_reward(table), discount), table)
    weight = discount ** torch.arange(LANGUAGE.horizon, dtype=torch.float64)
    returns = F.returns_to_go(path_reward(table).detach(), MASK, discount)
    close(expected_gradient(table, weight * returns), -exact)


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_all_actions_with_a_sampled_future_has_the_exact_expected_gradient(discount):
    table = policy_table()
    probability = LANGUAGE.path_probability(table).detach()
    reward = token_reward(table)[LANGUAGE.state]  # the policy inside is differentiated
    logprobs = table.log_softmax(-1)[LANGUAGE.state]
    immediate = F.all_actions_loss(logprobs, probability[:, None, None] * reward, MASK, 1.0)
    sampled = path_reward(table).detach().masked_fill(~MASK, 0.0)
    future = F.returns_to_go(sampled, MASK, discount) - sampled
    later = F.reinforce_loss(path_logprob(table), probability[:, None] * future, MASK, 1.0)
    exact = LANGUAGE.reward_to_go_gradient(table, token_reward(table), discount)
    close(gradient(immediate + later, table), -exact)


@pytest.mark.parametrize("discount", [0.7, 1.0])
def test_leave_one_out_leaves_the_expected_gradient_as_it_is(discount):
    """Over all 225 pairs of paths, each weighted with its probability."""
    table = policy_table()
    paths = len(LANGUAGE.tokens)
    pair = torch.cartesian_prod(torch.arange(paths), torch.arange(paths)).reshape(-1)
    probability = LANGUAGE.path_probability(table).detach()
    weight = (probability[pair[0::2]] * probability[pair[1::2]]).repeat_interleave(2)
    returns = F.returns_to_go(path_reward(table).detach(), MASK, discount)[pair]
    baseline = F.leave_one_out_baseline(returns, MASK[pair], 2)
    assert baseline[MASK[pair]].abs().max() > 0.1
    loss = F.reinforce_loss(path_logprob(table)[pair], weight[:, None] * (returns - baseline), MASK[pair], 2.0)
    close(gradient(loss, table), -LANGUAGE.reward_to_go_gradient(table, token_reward(table), discount))


@pytest.mark.parametrize("name", ["batch_baseline", "position_baseline"])
def test_means_over_other_samples_leave_the_expected_gradient_as_it_is(name):
    table = policy_table()
    returns = F.returns_to_go(path_reward(table).detach(), MASK)
    independent = torch.tensor([3, 9, 14])  # a batch drawn independently of the sample
    baseline = getattr(F, name)(returns[independent], MASK[independent])[:1]
    assert baseline.abs().max() > 0.1
    close(expected_gradient(table, returns - baseline), expected_gradient(table, returns))


@pytest.mark.parametrize("name", ["batch_baseline", "position_baseline"])
def test_means_that_hold_the_sample_itself_shrink_the_gradient(name):
    """With one action a row and B rows, the factor is exactly 1 − 1/B; here B = 2."""
    logits = POLICY[:1].clone().requires_grad_()
    value = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    mask, probability = torch.ones(2, 1, dtype=torch.bool), logits.detach().softmax(-1)[0]
    total = torch.zeros((), dtype=torch.float64)
    for a, b in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
        tokens = torch.tensor([[a], [b]])
        advantage = value[tokens] - getattr(F, name)(value[tokens], mask)
        logprob = F.token_logprobs(logits.expand(2, 1, 3), tokens)
        total = total + probability[a] * probability[b] * F.reinforce_loss(logprob, advantage, mask, 2.0)
    exact = gradient(-(logits.softmax(-1)[0] * value).sum(), logits)
    close(gradient(total, logits), 0.5 * exact)


def shaped_gradient(discount):
    """Expected gradients without and with shaping, where the horizon is a real end: every path is terminal there."""
    table = policy_table()
    reward = path_reward(table).detach()
    generator = torch.Generator().manual_seed(5)
    by_state = torch.randn(LANGUAGE.states, dtype=torch.float64, generator=generator)
    potential = torch.cat([by_state[LANGUAGE.state], by_state.new_zeros(len(reward), 1)], dim=1)
    ended = torch.ones(len(reward), dtype=torch.bool)
    shaped = F.shape_reward(reward, potential, MASK, ended, discount)
    assert (shaped - reward)[MASK].abs().max() > 0.1
    plain, changed = (expected_gradient(table, F.returns_to_go(r, MASK)) for r in (reward, shaped))
    return plain, changed


def test_shaping_leaves_the_undiscounted_gradient_as_it_is():
    close(*shaped_gradient(1.0))


def test_shaping_with_a_discount_changes_it():
    plain, changed = shaped_gradient(0.7)
    assert (plain - changed).abs().max() > 1e-3


TWO_STEPS = TinyLanguage(vocabulary=3, horizon=2)


def closed_form(sft, ref, beta):
    """π* ∝ π_SFT·(π_SFT/π_ref)^{1/β} over whole responses."""
    sft_path, ref_path = (TWO_STEPS.logprob(x).sum(dim=1) for x in (sft, ref))
    return (sft_path + (sft_path - ref_path) / beta).softmax(dim=0)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_trained_policy_reaches_the_closed_form(beta):
    sft, ref = TWO_STEPS.random_logits(1) / 2, TWO_STEPS.random_logits(2) / 2
    table = sft.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)
    for _ in range(600):
        reward = path_reward(table, TWO_STEPS, sft, ref, beta).detach()
        returns = F.returns_to_go(reward, TWO_STEPS.mask)
        weight = TWO_STEPS.path_probability(table).detach()[:, None]
        optimizer.zero_grad()
        F.reinforce_loss(path_logprob(table, TWO_STEPS), weight * returns, TWO_STEPS.mask, 1.0).backward()
        optimizer.step()
        schedule.step()
    optimum = closed_form(sft, ref, beta)
    assert (optimum - TWO_STEPS.path_probability(sft)).abs().max() > 0.05
    close(TWO_STEPS.path_probability(table.detach()), optimum, 1e-6)


def test_at_the_closed_form_the_gradient_is_zero():
    beta = 0.5
    sft, ref = TWO_STEPS.random_logits(1), TWO_STEPS.random_logits(2)
    optimum = closed_form(sft, ref, beta)
    mass = torch.zeros(TWO_STEPS.states, TWO_STEPS.vocabulary, dtype=torch.float64)
    for path in range(len(optimum)):  # π*(a|s) is the share of π* that passes through (s, a)
        for t in range(TWO_STEPS.horizon):
            if TWO_STEPS.mask[path, t]:
                mass[TWO_STEPS.state[path, t], TWO_STEPS.tokens[path, t]] += optimum[path]
    table = (mass / mass.sum(dim=1, keepdim=True)).log().requires_grad_()
    reward = path_reward(table, TWO_STEPS, sft, ref, beta).detach()
    weight = TWO_STEPS.path_probability(table).detach()[:, None]
    returns = F.returns_to_go(reward, TWO_STEPS.mask)
    loss = F.reinforce_loss(path_logprob(table, TWO_STEPS), weight * returns, TWO_STEPS.mask, 1.0)
    assert gradient(loss, table).abs().max() < 1e-12
