"""The optimum of the objective at γ = 0, sampled from π_SFT and its references without training."""

from collections.abc import Callable

import torch
from torch import Tensor

from dpr_lightning.errors import InputError
from dpr_lightning.rewards.forms import expected_log_ratio, reward_of_logprobs
from dpr_lightning.rewards.reward_spec import RewardSpec


def decode_time_optimum(spec: RewardSpec, beta: float) -> Callable[[list[Tensor]], Tensor]:
    """π(a|s) ∝ π_SFT(a|s)·exp(r(s, a)/β): in each state, the optimum of the all-actions objective at γ = 0.

    With ``log_ratio`` this is contrastive decoding, (1+w)·log π_SFT − w·log π_ref with w = 1/β; with ``log_policy`` it
    is π_SFT at the temperature β/(1+β).

    Args:
        spec: of the reward.
        beta: β, nats of reward per nat of KL; above 0.

    Returns:
        a function of the log-probabilities [B, V] of π_SFT and then of each reference, which returns logits [B, V].

    Raises:
        InputError: β is not above 0, or the reward is standardised by position or length.
    """
    if not beta > 0:
        raise InputError(f"β is {beta}; it divides the reward and must be above 0.")
    if spec.position_zscore or spec.length_normalise:
        raise InputError("A token that is not written yet has no position_zscore or length_normalise: turn them off.")

    def combine(logprobs: list[Tensor]) -> Tensor:
        policy, references = logprobs[0], torch.stack(logprobs[1:])
        divergence = expected_log_ratio(spec, policy, references).unsqueeze(-1) if spec.needs_divergence else None
        tilted = policy + reward_of_logprobs(spec, policy, references, divergence) / beta
        return tilted.masked_fill(policy == -torch.inf, -torch.inf)

    return combine
