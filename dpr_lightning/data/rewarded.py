"""Rollouts joined with what the frozen models say of them."""

import torch
from torch import Tensor

from dpr_lightning.functional import truncated_importance
from dpr_lightning.types import EveryAction, RolloutBatch, Rollouts, TokenScores


def rewarded(rollouts: Rollouts, scores: TokenScores, actions: EveryAction | None = None) -> RolloutBatch:
    """Rollouts with the scores [B, T] of their own tokens, and advantages of 0.

    Args:
        rollouts: what was sampled.
        scores: of its tokens; several references are averaged.
        actions: of every token in the same states.
    """
    return RolloutBatch(
        tokens=rollouts.tokens,
        mask=rollouts.mask,
        terminated=rollouts.terminated,
        prompt=rollouts.prompt,
        behaviour_logprob=rollouts.logprob,
        sft_logprob=scores.policy_logprob,
        reference_logprob=scores.reference_logprobs.mean(0),
        reward=scores.reward,
        advantage=torch.zeros_like(scores.reward),
        num_tokens=rollouts.mask.sum().float(),
        actions=actions,
    )


def weighted(rollout: RolloutBatch, policy_logprob: Tensor, cap: float) -> RolloutBatch:
    """A rollout that another program drew, as if the policy had, with what each of its tokens counts.

    Args:
        rollout: ``behaviour_logprob`` is the other program's.
        policy_logprob: log π_θ [B, T] of its tokens, nats.
        cap: of the weights.
    """
    width = policy_logprob.shape[1]
    acted = torch.arange(width, device=policy_logprob.device) < rollout.mask.sum(1, keepdim=True)
    weights = truncated_importance(policy_logprob, rollout.behaviour_logprob, acted, cap)
    return rollout._replace(behaviour_logprob=policy_logprob, importance=weights.weight)
