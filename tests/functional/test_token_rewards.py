import math
from typing import get_args

import pytest
import torch

from dpr_lightning import functional as F
from dpr_lightning.errors import InputError
from tests import reference

REDUCTIONS = get_args(F.ReferenceReduction)
FORMS = F.FORMS


def random_logprobs(*shape, seed=0):
    return -torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("references", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5)])
def test_the_dense_reward_equals_the_twin(reduction, references, shape):
    policy, reference_logprobs = random_logprobs(*shape), random_logprobs(references, *shape, seed=1)
    torch.testing.assert_close(
        F.baseline_relative_reward(policy, reference_logprobs, reduction, coefficient=0.7),
        reference.baseline_relative_reward(policy, reference_logprobs, reduction, 0.7),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_reference_gives_the_log_ratio_and_a_finite_gradient(reduction):
    policy, references = random_logprobs(3, 4), random_logprobs(1, 3, 4, seed=1).requires_grad_()
    reward = F.baseline_relative_reward(policy, references, reduction)
    torch.testing.assert_close(reward, policy - references[0], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(reward.sum(), references)
    torch.testing.assert_close(gradient, -torch.ones_like(references), rtol=0, atol=1e-12)


def test_pessimism_orders_the_reductions():
    policy, references = random_logprobs(5, 6), random_logprobs(4, 5, 6, seed=1)
    mean, mixture, low = (
        F.baseline_relative_reward(policy, references, r) for r in ("mean_logprob", "mean_prob", "min")
    )
    assert (low <= mixture).all()  # the mixture is at most its largest member
    assert (mixture <= mean).all()  # Jensen


def test_the_mean_reward_under_the_policy_is_the_divergence():
    """E_{π_SFT}[r̂] = KL(π_SFT‖π_ref) ≥ 0."""
    policy, other = random_logprobs(2, 3, 5).log_softmax(-1), random_logprobs(2, 3, 5, seed=1).log_softmax(-1)
    reward = F.baseline_relative_reward(policy, other[None])
    torch.testing.assert_close((policy.exp() * reward).sum(-1), F.kl_divergence(policy, other), rtol=0, atol=1e-12)
    centred = F.dense_reward_form("centred", policy, other, F.kl_divergence(policy, other)[..., None])
    assert (policy.exp() * centred).sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_subtracted_in_float32(dtype):
    policy, other = torch.tensor([[-300.0]], dtype=dtype), torch.tensor([[[-0.001]]], dtype=dtype)
    reward = F.baseline_relative_reward(policy, other)
    assert reward.dtype == torch.float32
    assert float(reward) == pytest.approx(float(policy) - float(other), abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5)])
def test_forms_equal_the_twin(form, shape):
    policy, baseline = random_logprobs(*shape), random_logprobs(*shape, seed=1)
    divergence = -random_logprobs(*shape[:2], *(1 for _ in shape[2:]), seed=2)
    result = F.dense_reward_form(form, policy, baseline, divergence, limit=0.4, interpolation=0.3)
    spread = divergence.expand(shape)
    for index in torch.cartesian_prod(*(torch.arange(length) for length in shape)):
        at = tuple(index)
        expected = reference.dense_reward_form(
            form, float(policy[at]), float(baseline[at]), float(spread[at]), 0.4, 0.3
        )
        assert float(result[at]) == pytest.approx(expected, abs=1e-12)


def test_interpolation_runs_from_log_policy_to_log_ratio():
    policy, baseline = random_logprobs(3, 4), random_logprobs(3, 4, seed=1)
    for strength, form in ((0.0, "log_policy"), (1.0, "log_ratio")):
        torch.testing.assert_close(
            F.dense_reward_form("interpolated", policy, baseline, interpolation=strength),
            F.dense_reward_form(form, policy, baseline),
            rtol=0,
            atol=1e-12,
        )


def test_forms_add_up_with_their_weights():
    policy, baseline = random_logprobs(3, 4), random_logprobs(3, 4, seed=1)
    mixed = F.mixed_dense_reward({"one_sided": 1.0, "log_policy": 0.5, "centred": 0.0}, policy, baseline)
    torch.testing.assert_close(mixed, (policy - baseline).clamp(max=0) + policy / 2, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="needs a weight other than 0"):
        F.mixed_dense_reward({"one_sided": 0.0}, policy, baseline)


@pytest.mark.parametrize("form", ["centred", "one_sided_centred"])
def test_centred_forms_need_a_divergence_that_broadcasts(form):
    policy = random_logprobs(2, 3, 5)
    with pytest.raises(ValueError, match="pass divergence"):
        F.dense_reward_form(form, policy, policy)
    with pytest.raises(ValueError, match=r"needs? divergence.unsqueeze\(-1\)"):
        F.dense_reward_form(form, policy, policy, torch.zeros(2, 3))


def test_options_out_of_range_are_refused():
    policy = random_logprobs(2, 3)
    with pytest.raises(ValueError, match="form is 'log_rato', expected one of: log_ratio"):
        F.dense_reward_form("log_rato", policy, policy)
    with pytest.raises(ValueError, match=r"limit is 0\.0"):
        F.dense_reward_form("clipped", policy, policy, limit=0.0)
    with pytest.raises(ValueError, match="λ in"):
        F.dense_reward_form("interpolated", policy, policy, interpolation=1.5)
    with pytest.raises(ValueError, match="reduction is 'median'"):
        F.baseline_relative_reward(policy, policy[None], "median")
    with pytest.raises(ValueError, match="holds no reference"):
        F.baseline_relative_reward(policy, policy[None][:0])
    with pytest.raises(ValueError, match=r"unsqueeze\(0\)"):
        F.baseline_relative_reward(policy, policy)


def test_length_normalised_rewards_sum_to_their_mean():
    reward, mask = random_logprobs(5, 6), reference.ragged_mask(5, 6)
    result = F.length_normalise(reward, mask)
    torch.testing.assert_close(result, reference.length_normalise(reward, mask), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.sum(1), F.masked_mean(reward, mask, dim=1), rtol=0, atol=1e-12)


def test_position_scores_equal_the_twin():
    reward, mask = random_logprobs(7, 6), reference.ragged_mask(7, 6, seed=2)
    torch.testing.assert_close(
        F.zscore_by_position(reward, mask), reference.zscore_by_position(reward, mask), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_that_agree_to_rounding_score_zero(dtype):
    reward = torch.full((7, 3), 0.1, dtype=dtype) * torch.tensor([1.0, 3.0, -1e3], dtype=dtype)
    assert (F.zscore_by_position(reward, torch.ones(7, 3, dtype=torch.bool)) == 0).all()


def test_rewards_that_are_not_finite_are_counted_and_placed():
    reward, mask = torch.zeros(2, 3), torch.tensor([[True, True, False], [True, False, False]])
    reward[0, 2] = math.nan  # padding
    F.check_finite_rewards(reward, mask)
    reward[1, 0] = math.inf
    with pytest.raises(InputError, match=r"1 of 3 token rewards are not finite; the first, at \[1, 0\], is inf"):
        F.check_finite_rewards(reward, mask)
