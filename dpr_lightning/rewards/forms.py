"""Any form of the reward from scores that were taken once."""

from torch import Tensor

from dpr_lightning.functional import mixed_dense_reward, reference_baseline
from dpr_lightning.rewards.spec import RewardSpec
from dpr_lightning.types import TokenScores


def token_rewards(scores: TokenScores, spec: RewardSpec) -> Tensor:
    """The reward of each token [B, T] in the form of ``spec``, nats; 0 outside the mask.

    Args:
        scores: with the divergence, whatever form they were taken for.
        spec: its standardisations (position, length) are left out.
    """
    reward = mixed_dense_reward(
        spec.terms,
        scores.policy_logprob,
        reference_baseline(scores.reference_logprobs, spec.reduction, spec.coefficient),
        scores.divergence,
        limit=spec.clip_limit,
        interpolation=spec.interpolation,
    )
    return reward.masked_fill(~scores.mask, 0.0)
