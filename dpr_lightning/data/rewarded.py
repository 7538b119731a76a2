"""Rollouts joined with what the frozen models say of them."""

import torch

from dpr_lightning.types import AllActionScores, RolloutBatch, Rollouts, TokenScores


def rewarded(rollouts: Rollouts, scores: TokenScores, actions: AllActionScores | None = None) -> RolloutBatch:
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
