"""A rollout algorithm, two rewards and a loss for pairs, outside the package."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.functional import batch_baseline, masked_sum, reinforce_loss
from dpr_lightning.modules import RolloutAlgorithm, ScoredPart, SelfPlay
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rewards import RewardTerms, reward_form
from dpr_lightning.types import RolloutBatch


class ReinforceEntropy(RolloutAlgorithm):
    """REINFORCE with the batch's mean return as baseline, and a bonus for entropy.

    Args:
        policy: what to train; it starts as π_SFT.
        entropy_bonus: nats of return that a nat of entropy is worth.
        options: of :class:`RolloutAlgorithm`.

    Source: Williams 1992, doi:10.1007/BF00992696; the bonus: Mnih et al. 2016, arXiv:1602.01783.
    """

    def __init__(self, policy: PolicySpec, entropy_bonus: float = 0.01, **options: Any) -> None:
        super().__init__(policy, **options)
        self.entropy_bonus = entropy_bonus

    def credit(self, rollout: RolloutBatch) -> RolloutBatch:
        """Each token has the return of its response, less the mean return of all responses on all ranks."""
        mask = rollout.action_mask
        returns = masked_sum(rollout.reward, mask, dim=1).unsqueeze(1)
        if rollout.outcome is not None:
            returns = returns + rollout.outcome.unsqueeze(1)
        baseline = batch_baseline(returns, mask.any(1, keepdim=True), sum_over_ranks)
        return rollout._replace(advantage=(returns - baseline).expand_as(mask).masked_fill(~mask, 0.0))

    def loss(self, scored: ScoredPart, part: RolloutBatch) -> Tensor:
        """− Σ_t [A_t·log π(a_t|s_t) + c·H(s_t)] / N, N the tokens of the whole step."""
        bonus = self.entropy_bonus * masked_sum(scored.entropy, scored.mask) / part.num_tokens
        return reinforce_loss(scored.logprob, part.advantage, scored.mask, part.num_tokens) - bonus


def brevity(prompt: str, answer: str, metadata: Mapping[str, Any]) -> float:
    """A reward of whole responses in [0, 1]: higher for shorter ones. ``metadata``: the row's other columns."""
    return 1.0 / (1.0 + len(answer))


@reward_form()
def soft_clipped(terms: RewardTerms) -> Tensor:
    """A token reward: r̂ = log π_SFT − log π_ref, which flattens smoothly at ± ``clip_limit`` nats."""
    return terms.limit * torch.tanh(terms.log_ratio / terms.limit)


class IdentityPreference(SelfPlay):
    """Pairs of which the chosen response is to score ``margin`` nats above the rejected one.

    Args:
        policy: what to train; it starts as its opponent.
        margin: 1/2τ of the paper.
        options: of :class:`SelfPlay`.

    Source: Azar et al. 2023, arXiv:2310.12036.
    """

    def __init__(self, policy: PolicySpec, margin: float = 1.0, **options: Any) -> None:
        super().__init__(policy, **options)
        self.margin = margin

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(s_chosen − s_rejected − margin)² of each pair [P]; s = log π_θ − log π_opponent of a response."""
        return (chosen - rejected - self.margin) ** 2
