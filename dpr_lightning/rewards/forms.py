"""Any form of the reward from the same log-probabilities."""

import torch
from torch import Tensor

from dpr_lightning.functional import baseline_relative_reward, mixed_dense_reward, reference_baseline
from dpr_lightning.rewards.reward_spec import RewardSpec
from dpr_lightning.types import TokenScores


def reward_of_logprobs(spec: RewardSpec, policy: Tensor, references: Tensor, divergence: Tensor | None) -> Tensor:
    """The reward in the form of ``spec``, nats, without its standardisations (position, length).

    Args:
        spec: of the form.
        policy: log π_SFT of the acted tokens, [B, T], or of every token, [*state, V].
        references: log π_r of each reference: [R, …].
        divergence: KL(π_SFT‖π_ref)(s), broadcast to ``policy``; needed by the centred forms.
    """
    return mixed_dense_reward(
        spec.terms,
        policy,
        reference_baseline(references, spec.reduction, spec.coefficient),
        divergence,
        limit=spec.clip_limit,
        interpolation=spec.interpolation,
    )


def expected_log_ratio(spec: RewardSpec, policy: Tensor, references: Tensor) -> Tensor:
    """E_{a~π_SFT}[r̂(s, a)]: with one reference, KL(π_SFT‖π_ref)(s); [*state] from log-probabilities [*state, V]."""
    log_ratio = baseline_relative_reward(policy, references, spec.reduction, spec.coefficient)
    probability = policy.exp()
    return torch.where(probability > 0, probability * log_ratio, 0.0).sum(-1)


def token_rewards(scores: TokenScores, spec: RewardSpec) -> Tensor:
    """The reward of each token [B, T] in the form of ``spec``, nats; 0 outside the mask.

    Args:
        scores: with the divergence; their form of the reward does not matter.
        spec: of the form; its standardisations (position, length) are not applied.
    """
    reward = reward_of_logprobs(spec, scores.policy_logprob, scores.reference_logprobs, scores.divergence)
    return reward.masked_fill(~scores.mask, 0.0)
