"""Weights that make samples of one distribution stand for another's, by enumeration."""

import pytest
import torch

from dpr_lightning import functional as F


def two_policies() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of six tokens in five states under π and b, and a function of them."""
    generator = torch.Generator().manual_seed(0)
    policy, behaviour, value = (torch.randn(5, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    return policy.log_softmax(-1), behaviour.log_softmax(-1), value


def test_expectations_are_those_of_the_policy_where_nothing_is_truncated():
    policy, behaviour, value = two_policies()
    result = F.truncated_importance(policy, behaviour, torch.ones_like(value, dtype=torch.bool), 1e9)
    torch.testing.assert_close((behaviour.exp() * result * value).sum(-1), (policy.exp() * value).sum(-1))
    torch.testing.assert_close((behaviour.exp() * result).sum(-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("cap", [0.5, 1.0, 2.0])
def test_a_cap_takes_no_more_than_its_bound(cap):
    policy, behaviour, value = two_policies()
    result = F.truncated_importance(policy, behaviour, torch.ones_like(value, dtype=torch.bool), cap)
    assert result.max() <= cap
    bias = (behaviour.exp() * result * value).sum(-1) - (policy.exp() * value).sum(-1)
    truncated = policy.exp() > cap * behaviour.exp()
    bound = (policy.exp() * value.abs() * truncated).sum(-1)
    assert truncated.any()
    assert (result[truncated] == cap).all()
    assert (bias.abs() <= bound + 1e-12).all()


def test_nothing_outside_the_mask_counts():
    policy = torch.tensor([[0.0, float("nan"), float("inf")]], requires_grad=True)
    result = F.truncated_importance(policy, torch.zeros(1, 3), torch.tensor([[True, False, False]]), 2.0)
    assert result.tolist() == [[1.0, 0.0, 0.0]]
    assert not result.requires_grad


def test_what_does_not_fit_is_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="cap"):
        F.truncated_importance(torch.zeros(2, 3), torch.zeros(2, 3), mask, 0.0)
    with pytest.raises(ValueError, match="behaviour_logprob"):
        F.truncated_importance(torch.zeros(2, 3), torch.zeros(2, 4), mask, 1.0)
