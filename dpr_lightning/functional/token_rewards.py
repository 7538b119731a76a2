"""The dense reward of a token: log-probability under π_SFT less that under weaker references.

Every function takes the log-probabilities of the acted tokens, [B, T], or of every token of the vocabulary,
[B, T, V]; a divergence per state goes with the latter as ``divergence.unsqueeze(-1)``.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpr_lightning.errors import InputError
from dpr_lightning.functional._checks import at_least_float32, expect_choice, expect_mask, expect_positive, expect_shape
from dpr_lightning.functional.baselines import SumOverRanks, position_moments, standardise

ReferenceReduction = Literal["mean_logprob", "mean_prob", "min", "mean_minus_std"]


def reference_baseline(
    reference_logprobs: Float[Tensor, " R *shape"],
    reduction: ReferenceReduction = "mean_logprob",
    coefficient: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """One log-probability b_t out of R references, such that the reward is r̂_t = log π_SFT − b_t:

        mean_logprob     b = mean_r log π_r                       r̂ is the mean of the log-ratios
        mean_prob        b = log mean_r π_r                       the references as a mixture
        min              b = max_r log π_r                        r̂ is the smallest log-ratio: pessimistic
        mean_minus_std   b = mean_r log π_r + c·std_r log π_r     r̂ is the mean less c standard deviations

    log π_SFT is common to all log-ratios, so their standard deviation (population, divided by R) is that of log π_r.

    Args:
        reference_logprobs: nats; R ≥ 1 references first.
        reduction: how several become one.
        coefficient: c of ``mean_minus_std``; other reductions do not use it.

    Raises:
        ValueError: no reference at all, or an unknown reduction.
    """
    expect_choice("reduction", reduction, get_args(ReferenceReduction))
    if reference_logprobs.dim() < 1 or reference_logprobs.shape[0] < 1:
        raise ValueError("reference_logprobs holds no reference: its first axis must have R ≥ 1 entries.")
    logprobs = at_least_float32(reference_logprobs)
    if reduction == "mean_logprob":
        return logprobs.mean(dim=0)
    if reduction == "mean_prob":
        references = logprobs.new_tensor(float(logprobs.shape[0]))
        return logprobs.logsumexp(dim=0) - references.log()
    if reduction == "min":
        return logprobs.amax(dim=0)
    mean = logprobs.mean(dim=0)
    variance = (logprobs - mean).square().mean(dim=0)
    # a square root has an infinite slope at 0; where references agree, the spread and its slope are 0
    spread = variance > 0
    deviation = variance.masked_fill(~spread, 1.0).sqrt().masked_fill(~spread, 0.0)
    return mean + coefficient * torch.where(variance.isnan(), variance, deviation)


def baseline_relative_reward(
    policy_logprob: Float[Tensor, "*shape"],
    reference_logprobs: Float[Tensor, " R *shape"],
    reduction: ReferenceReduction = "mean_logprob",
    coefficient: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """The dense reward of a token:  r̂_t = log π_SFT(a_t|s_t) − b_t, b_t the references' baseline.

    Its expectation under π_SFT is KL(π_SFT‖π_ref)(s_t) ≥ 0. Values that are not finite (where a reference gives a token
    probability 0) are returned: :func:`check_finite_rewards` reports them.

    Args:
        policy_logprob: log π_SFT, nats, [B, T] or [B, T, V].
        reference_logprobs: log π_r, nats, one reference after the other: [R, B, T] or [R, B, T, V].
        reduction: mean of log-ratios, mean of probabilities, smallest log-ratio, or mean − c·std of log-ratios.
        coefficient: c of ``mean_minus_std``.

    Returns:
        Nats per token; half-precision input is subtracted in float32.

    Raises:
        ValueError: shapes that do not fit, no reference, or an unknown reduction.
    Source: Li et al. 2025, arXiv:2510.02493 (one reference); several references are ours.
    """
    if reference_logprobs.dim() != policy_logprob.dim() + 1:
        raise ValueError(
            f"reference_logprobs has {reference_logprobs.dim()} dimensions, expected {policy_logprob.dim() + 1}: "
            "those of policy_logprob after one for the references. Use .unsqueeze(0) for a single one."
        )
    expect_shape(
        "reference_logprobs",
        reference_logprobs,
        (reference_logprobs.shape[0], *policy_logprob.shape),
        "R references, each shaped as policy_logprob",
    )
    return at_least_float32(policy_logprob) - reference_baseline(reference_logprobs, reduction, coefficient)


def clip_reward(reward: Float[Tensor, "*shape"], limit: float) -> Float[Tensor, "*shape"]:
    """Rewards cut to [−limit, limit], nats. NaN stays NaN, and :func:`check_finite_rewards` reports it.

    Raises:
        ValueError: a limit that is not above 0.
    """
    expect_positive("limit", limit)
    return reward.clamp(-limit, limit)


def length_normalise(reward: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Rewards divided by the number of their row's tokens:  r_t / n, so that they sum to the row's mean reward.

    Outside the mask the result is 0; a row without tokens is all 0.

    Raises:
        ValueError: shapes that differ.
    """
    mask = expect_mask(mask, reward.shape, "that of reward")
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return reward.masked_fill(~mask, 0.0) / count


def zscore_by_position(
    reward: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], reduce: SumOverRanks | None = None
) -> Float[Tensor, "B T"]:
    """Rewards standardised over the rows that are acting at each position:  (r_t − mean_t) / std_t.

    Population standard deviation. A position where the rewards agree to rounding (for example, a single row) gives 0.

    Args:
        reward: nats per token.
        mask: True where the policy acted; outside it the result is 0.
        reduce: sums a tensor over ranks, which must then share T.

    Raises:
        ValueError: shapes that differ.
    """
    mask = expect_mask(mask, reward.shape, "that of reward")
    mean, mean_square, deviation_square = position_moments(reward, mask, reduce)
    return standardise(reward, mask, mean, mean_square, deviation_square)


def check_finite_rewards(reward: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> None:
    """Check that every reward inside the mask is finite.

    Raises:
        InputError: (a ValueError) some are not; it has their number and the position of the first.
        ValueError: shapes that differ.
    """
    mask = expect_mask(mask, reward.shape, "that of reward")
    bad = mask & ~torch.isfinite(reward)
    count = int(bad.sum())
    if count:
        position = tuple(int(index) for index in bad.nonzero()[0])
        raise InputError(
            f"{count} of {int(mask.sum())} token rewards are not finite; the first, at {list(position)}, is "
            f"{float(reward[position])}. A reference that gives a sampled token probability 0 does this: score it in "
            "float32, or sample with top_p=1. NaN everywhere means that a model's weights are damaged."
        )
