"""The decode-time optimum against what it is derived from, and against the objective it is the optimum of."""

import math
from typing import Any

import pytest
import torch

from dpr_lightning.errors import InputError
from dpr_lightning.functional import kl_divergence
from dpr_lightning.rewards import RewardSpec, decode_time_optimum, reward_of_logprobs

STATES, VOCABULARY = 5, 7


@pytest.fixture
def logprobs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(STATES, VOCABULARY, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
        for _ in range(3)
    ]


def test_log_ratio_is_contrastive_decoding(logprobs: list[torch.Tensor]) -> None:
    policy, weak, _ = logprobs
    sampled = decode_time_optimum(RewardSpec("log_ratio"), 2.0)([policy, weak])
    torch.testing.assert_close(sampled, 1.5 * policy - 0.5 * weak)


def test_log_policy_is_a_temperature(logprobs: list[torch.Tensor]) -> None:
    sampled = decode_time_optimum(RewardSpec("log_policy"), 0.5)(logprobs[:2])
    torch.testing.assert_close(sampled, logprobs[0] / (0.5 / 1.5))


@pytest.mark.parametrize("form", ["one_sided", "one_sided_centred", {"centred": 1.0, "log_policy": 0.5}])
@pytest.mark.parametrize("references", [1, 2])
def test_no_policy_has_a_higher_objective(form: Any, references: int, logprobs: list[torch.Tensor]) -> None:
    beta, spec = 0.3, RewardSpec(form, reduction="mean_prob")
    policy, weaker = logprobs[0], torch.stack(logprobs[1 : 1 + references])
    baseline = weaker.logsumexp(0) - math.log(references)
    divergence = kl_divergence(policy.unsqueeze(1), baseline.unsqueeze(1))
    reward = reward_of_logprobs(spec, policy, weaker, divergence)

    def objective(trained: torch.Tensor) -> torch.Tensor:
        return (trained.exp() * (reward - beta * (trained - policy))).sum(-1)

    sampled = decode_time_optimum(spec, beta)([policy, *weaker]).log_softmax(-1)
    # Concave in π, so where no direction leads up there is no other maximum.
    level = (reward - beta * (sampled - policy)) - objective(sampled).unsqueeze(-1)
    torch.testing.assert_close(level, torch.zeros_like(level), atol=1e-9, rtol=0)
    generator = torch.Generator().manual_seed(1)
    for distance in (1e-3, 0.1, 2.0):
        other = (sampled + distance * torch.randn(sampled.shape, generator=generator, dtype=sampled.dtype)).log_softmax(
            -1
        )
        assert (objective(other) < objective(sampled)).all()


def test_a_token_that_the_policy_rules_out_stays_ruled_out(logprobs: list[torch.Tensor]) -> None:
    policy, weak, _ = logprobs
    policy[:, 3] = weak[:, 3] = -torch.inf
    for form in ("log_ratio", "one_sided_centred"):
        sampled = decode_time_optimum(RewardSpec(form), 0.5)([policy, weak])  # type: ignore[arg-type]
        assert (sampled[:, 3] == -torch.inf).all()
        assert sampled[:, :3].isfinite().all()


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        decode_time_optimum(RewardSpec(), beta)


def test_standardised_rewards_are_refused() -> None:
    with pytest.raises(InputError, match="not written yet"):
        decode_time_optimum(RewardSpec(position_zscore=True), 1.0)
