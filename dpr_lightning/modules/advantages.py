"""From token rewards to advantages, over a whole rollout."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpr_lightning.distributed import as_wide_on_all_ranks, sum_over_ranks
from dpr_lightning.errors import InputError
from dpr_lightning.functional import (
    batch_baseline,
    leave_one_out_baseline,
    position_baseline,
    response_baseline,
    returns_to_go,
    whiten,
)
from dpr_lightning.types import RolloutBatch


@dataclass
class CreditSpec:
    """How rewards become the weight of each token.

    Args:
        discount: γ. At 0, as in the recipes, a token is credited with its own reward alone; at 1 the telescoping that
            recovers the reward is exact.
        baseline: what is subtracted from the return to lower its variance.
        level: ``token`` gives each token its reward-to-go; ``sentence`` gives all of them the response's whole reward
            (the paper's ablation).
        whiten: standardise the advantages over the rollout; the scale of the reward then no longer matters.
        dense_weight: what the token reward counts; 0 leaves the hold on π_SFT and the outcome.
        outcome_weight: nats that a score of 1 is worth, where ``data.verifier`` or ``data.scorer`` gives one. The
            outcome is a separate return stream, undiscounted: every token of a response gets its score less the mean of
            the other samples of the prompt, or of the rollout where there is one sample a prompt.
    """

    discount: float = 0.0
    baseline: Literal["none", "batch", "position", "leave_one_out", "response"] = "position"
    level: Literal["token", "sentence"] = "token"
    whiten: bool = False
    dense_weight: float = 1.0
    outcome_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the range of γ, and that something is left to learn from."""
        if not 0.0 <= self.discount <= 1.0:
            raise InputError(f"`discount` is γ and lies in [0, 1]; found {self.discount}.")
        if self.level == "sentence" and self.baseline == "response":
            raise InputError(
                "With `level: sentence` every token has the response's whole return, which is its own mean: the "
                "`response` baseline would leave nothing. Choose `leave_one_out`, `batch` or `none`."
            )


def estimate_advantages(
    rollout: RolloutBatch,
    mask: Tensor,
    credit: CreditSpec,
    *,
    kl_coefficient: float,
    reference_coefficient: float = 0.0,
    group_size: int = 1,
    future_only: bool = False,
    policy_logprob: Tensor | None = None,
) -> Tensor:
    """A_t = G_t − b_t + w·(o − b_o), o the outcome of the response where there is one, and

        G_t = Σ_{k≥t} γ^{k−t}·[v·r_k − β·(log π_θ − log π_SFT)_k − β_ref·(log π_θ − log π_ref)_k]

    π_θ is the policy that drew the rollout, as a rule that at the start of its use, unless ``policy_logprob`` says
    otherwise.

    Args:
        rollout: rewards and log-probabilities [B, T]; the samples of one prompt next to each other.
        mask: [B, T] True for real actions.
        credit: γ, v and w, and which baselines b.
        kl_coefficient: β.
        reference_coefficient: β_ref.
        group_size: K samples a prompt.
        future_only: leave the immediate term out, for the all-actions estimator: γ·G_{t+1}.
        policy_logprob: log π_θ [B, T] of rollouts that another distribution drew (precomputed, or at a temperature):
            their behaviour log-probabilities say nothing about how far π_θ is from π_SFT.

    Returns:
        [B, T], 0 outside the mask, on the rollout's device.
    """
    logprob = rollout.behaviour_logprob if policy_logprob is None else policy_logprob
    reward = credit.dense_weight * rollout.reward - kl_coefficient * (logprob - rollout.sft_logprob)
    if reference_coefficient:
        reward = reward - reference_coefficient * (logprob - rollout.reference_logprob)
    reward = reward.masked_fill(~mask, 0.0)
    if credit.level == "sentence":
        returns = reward.sum(1, keepdim=True).expand_as(reward)
    else:
        returns = returns_to_go(reward, mask, credit.discount)
    if future_only:
        returns = returns - reward
    # A sentence's return is known whatever its length is, so that ended samples count in its baseline too.
    known = torch.ones_like(mask) if credit.level == "sentence" else mask
    # At discount 0 nothing of the future counts, and rounding should not either.
    future = not (future_only and credit.discount == 0.0)
    advantage = returns - _baseline(returns, known, credit, group_size) if future else torch.zeros_like(reward)
    advantage = (advantage + _outcome_advantage(rollout.outcome, credit, group_size)).masked_fill(~mask, 0.0)
    return whiten(advantage, mask, sum_over_ranks) if credit.whiten else advantage


def _outcome_advantage(outcome: Tensor | None, credit: CreditSpec, group_size: int) -> Tensor | float:
    """What each token of a response gets for its outcome, [B, 1]."""
    if outcome is None or credit.outcome_weight == 0.0:
        return 0.0
    score = outcome.unsqueeze(1)
    each = torch.ones_like(score, dtype=torch.bool)
    if group_size > 1:
        baseline = leave_one_out_baseline(score, each, group_size)
    else:
        baseline = batch_baseline(score, each, sum_over_ranks)
    return credit.outcome_weight * (score - baseline)


def _baseline(returns: Tensor, mask: Tensor, credit: CreditSpec, group_size: int) -> Tensor:
    if credit.baseline == "batch":
        return batch_baseline(returns, mask, sum_over_ranks)
    if credit.baseline == "position":
        wide, acting = as_wide_on_all_ranks(returns), as_wide_on_all_ranks(mask)
        return position_baseline(wide, acting, sum_over_ranks)[:, : returns.shape[1]]
    if credit.baseline == "leave_one_out":
        if group_size < 2:
            raise InputError(
                "The leave-one-out baseline compares samples of one prompt; set `data.samples_per_prompt` to 2 or "
                "more, or choose `baseline: position`."
            )
        return leave_one_out_baseline(returns, mask, group_size)
    return response_baseline(returns, mask) if credit.baseline == "response" else torch.zeros_like(returns)
