import math

import pytest
import torch

from dpr_lightning import functional as F
from tests import reference


def random_values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(left, right, tolerance=1e-12):
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def same_gradient(left, right, tensor):
    close(torch.autograd.grad(left, tensor, retain_graph=True)[0], torch.autograd.grad(right, tensor)[0])


def test_reinforce_equals_the_twin_and_leaves_the_advantage_alone():
    mask = reference.ragged_mask(5, 6)
    logprob, advantage = random_values(5, 6).requires_grad_(), random_values(5, 6, seed=1).requires_grad_()
    loss = F.reinforce_loss(logprob, advantage, mask, 7.0)
    close(loss, reference.reinforce_loss(logprob, advantage, mask, 7.0))
    close(torch.autograd.grad(loss, logprob, retain_graph=True)[0], -(advantage * mask).detach() / 7)
    assert torch.autograd.grad(loss, advantage, allow_unused=True)[0] is None


def test_all_actions_equals_the_twin_through_both_arguments():
    mask = reference.ragged_mask(4, 5)
    logits, sft = random_values(4, 5, 3).requires_grad_(), random_values(4, 5, 3, seed=1).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    dense = random_values(4, 5, 3, seed=2).requires_grad_()
    reward = dense - 0.3 * (logprobs - sft)
    loss = F.all_actions_loss(logprobs, reward, mask, 7.0)
    expected = reference.all_actions_loss(logprobs, reward, mask, 7.0)
    close(loss, expected)
    for argument in (logits, dense):
        close(*(torch.autograd.grad(x, argument, retain_graph=True)[0] for x in (loss, expected)))


def test_banned_actions_add_nothing_and_no_nan():
    logits = random_values(2, 3, 4)
    logits[..., 1] = -math.inf
    logits.requires_grad_()
    sft = logits.detach().log_softmax(-1)
    logprobs = (logits * 0.5).log_softmax(-1)
    reward = random_values(2, 3, 4) - 0.3 * (logprobs - sft)  # −inf − (−inf)
    assert reward[..., 1].isnan().all()
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = F.all_actions_loss(logprobs, reward, mask, 6.0)
    close(loss, reference.all_actions_loss(logprobs, reward, mask, 6.0))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[..., 1] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_clipped_surrogate_equals_the_twin(seed):
    mask = reference.ragged_mask(5, 6, seed)
    logprob, behaviour = random_values(5, 6, seed=seed).requires_grad_(), random_values(5, 6, seed=seed + 10)
    advantage = random_values(5, 6, seed=seed + 20)
    loss, share = F.clipped_surrogate_loss(logprob, behaviour, advantage, mask, 7.0, 0.2)
    expected, expected_share = reference.clipped_surrogate_loss(logprob, behaviour, advantage, mask, 7.0, 0.2)
    close(loss, expected)
    assert 0 < float(share) == pytest.approx(expected_share)
    same_gradient(loss, expected, logprob)


@pytest.mark.parametrize("clip_range", [0.2, (0.1, 0.3), 0.0])
def test_on_policy_the_surrogate_has_the_gradient_of_reinforce(clip_range):
    mask = reference.ragged_mask(5, 6)
    logprob, advantage = random_values(5, 6).requires_grad_(), random_values(5, 6, seed=1)
    loss, share = F.clipped_surrogate_loss(logprob, logprob.detach(), advantage, mask, 7.0, clip_range)
    assert share == 0
    same_gradient(loss, F.reinforce_loss(logprob, advantage, mask, 7.0), logprob)


def test_each_side_has_its_own_clip():
    logprob = torch.tensor([[0.25, -0.25]], dtype=torch.float64).log1p().requires_grad_()
    advantage, mask = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    for clip_range, shares in (((0.2, 0.3), [0, 1]), ((0.3, 0.2), [1, 0])):
        loss, share = F.clipped_surrogate_loss(logprob, torch.zeros(1, 2), advantage, mask, 2.0, clip_range)
        assert float(share) == 0.5
        gradient = torch.autograd.grad(loss, logprob)[0][0]
        assert [int(value == 0) for value in gradient] == shares


@pytest.mark.parametrize("clip_range", [-0.1, (0.2, -0.1), (1.5, 0.2)])
def test_a_clip_range_out_of_bounds_is_refused(clip_range):
    zeros, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="clip_range is"):
        F.clipped_surrogate_loss(zeros, zeros, zeros, mask, 1.0, clip_range)


def test_bounded_unlikelihood_equals_the_twin():
    advantage, logprob = random_values(6, 5), -random_values(6, 5, seed=1).abs() * 4
    close(F.bound_unlikelihood(advantage, logprob, 0.05), reference.bound_unlikelihood(advantage, logprob, 0.05))


def push(logit, bounded):
    """Gradient on the logits of a token that is pushed down from the given logit, and its probability."""
    logits = torch.tensor([[[logit, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    logprob = F.token_logprobs(logits, torch.zeros(1, 1, dtype=torch.int64))
    advantage = torch.full((1, 1), -1.0, dtype=torch.float64)
    if bounded:
        advantage = F.bound_unlikelihood(advantage, logprob, 0.05)
    loss = F.reinforce_loss(logprob, advantage, torch.ones(1, 1, dtype=torch.bool), 1.0)
    return torch.autograd.grad(loss, logits)[0].abs().max(), logprob.exp()


def test_the_push_on_an_improbable_token_vanishes_with_its_probability():
    for logit in (-5.0, -10.0, -30.0):
        gradient, probability = push(logit, bounded=True)
        assert gradient <= probability / 0.05 + 1e-15
        assert push(logit, bounded=False)[0] > 0.9  # what it is bounded against
    assert push(0.0, bounded=True)[0] == push(0.0, bounded=False)[0]  # a probable token is pushed as before


def test_repeated_pushes_settle_instead_of_running_away():
    def descend(bounded):
        logits = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
        for _ in range(500):
            logprob = F.token_logprobs(logits, torch.zeros(1, 1, dtype=torch.int64))
            advantage = torch.full((1, 1), -1.0, dtype=torch.float64)
            if bounded:
                advantage = F.bound_unlikelihood(advantage, logprob, 0.05)
            loss = F.reinforce_loss(logprob, advantage, torch.ones(1, 1, dtype=torch.bool), 1.0)
            (gradient,) = torch.autograd.grad(loss, logits)
            logits = (logits - 0.5 * gradient).detach().requires_grad_()
        return float(F.token_logprobs(logits, torch.zeros(1, 1, dtype=torch.int64)).detach())

    assert descend(bounded=False) < -300.0
    assert descend(bounded=True) > -12.0


@pytest.mark.parametrize("floor", [0.0, 1.5, float("nan")])
def test_a_floor_that_is_no_probability_is_refused(floor):
    with pytest.raises(ValueError, match="floor_probability is"):
        F.bound_unlikelihood(torch.zeros(1, 1), torch.zeros(1, 1), floor)


def test_gradients_flow_through_the_trained_log_probability_alone():
    mask = torch.ones(2, 3, dtype=torch.bool)
    logprob, behaviour, advantage = (random_values(2, 3, seed=seed).requires_grad_() for seed in range(3))
    loss, _ = F.clipped_surrogate_loss(logprob, behaviour, advantage, mask, 6.0, 0.2)
    through = torch.autograd.grad(loss, [logprob, behaviour, advantage], allow_unused=True)
    assert [gradient is not None for gradient in through] == [True, False, False]
    assert not F.bound_unlikelihood(advantage.detach(), logprob, 0.1).requires_grad
