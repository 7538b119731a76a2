"""Rollouts joined with what the frozen models say of them."""

import torch
from torch import Tensor

from dpr_lightning.functional import action_positions, gather_actions
from dpr_lightning.rewards import ActionScores
from dpr_lightning.types import RolloutBatch, Rollouts


def sampled_scores(actions: ActionScores, rollouts: Rollouts) -> ActionScores:
    """Of the scores of every token [B, T, V], those of the tokens that were sampled, [B, T]; 0 outside the mask."""
    position, acted = action_positions(rollouts.mask)
    index = gather_actions(rollouts.tokens, position, acted).unsqueeze(-1)

    def sampled(part: Tensor) -> Tensor:
        # The frozen models may sit on another device than the rollouts.
        return part.gather(-1, index.to(part.device)).squeeze(-1).to(acted.device).masked_fill(~acted, 0.0)

    return ActionScores(*(sampled(part) for part in actions))


def rewarded(rollouts: Rollouts, sampled: ActionScores) -> RolloutBatch:
    """Rollouts with the scores [B, T] of their own tokens, and advantages of 0."""
    return RolloutBatch(
        tokens=rollouts.tokens,
        mask=rollouts.mask,
        terminated=rollouts.terminated,
        prompt=rollouts.prompt,
        behaviour_logprob=rollouts.logprob,
        sft_logprob=sampled.sft_logprob,
        reference_logprob=sampled.reference_logprob,
        reward=sampled.reward,
        advantage=torch.zeros_like(sampled.reward),
        num_tokens=rollouts.mask.sum().float(),
    )


def with_actions(batch: RolloutBatch, actions: ActionScores) -> RolloutBatch:
    """The scores [B, T, V] of every token added."""
    return batch._replace(
        action_reward=actions.reward,
        action_sft_logprob=actions.sft_logprob,
        action_reference_logprob=actions.reference_logprob,
    )
