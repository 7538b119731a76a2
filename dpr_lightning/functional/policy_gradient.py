"""Policy-gradient losses, whose gradients are meaningful and whose values are not."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpr_lightning.functional._checks import (
    at_least_float32,
    expect_dimensions,
    expect_mask,
    expect_positive,
    expect_shape,
)
from dpr_lightning.functional.masking import masked_mean, masked_sum


def reinforce_loss(
    logprob: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    num_tokens: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Score-function estimator:  L = −Σ m·log π(a|s)·sg[A] / N, whose gradient is −Σ m·A·∇log π / N.

    Args:
        logprob: log π of the sampled tokens under the policy being trained, nats.
        advantage: return less baseline; no gradient flows through it.
        mask: True where the policy acted.
        num_tokens: N, tokens of the whole optimizer step over accumulation and ranks, so that the parts add up.

    Raises:
        ValueError: shapes that differ, or N ≤ 0.
    Source: Williams 1992; Sutton & Barto 2018, eq. 13.11.
    """
    expect_positive("num_tokens", num_tokens)
    mask = expect_mask(mask, logprob.shape, "that of logprob")
    expect_shape("advantage", advantage, logprob.shape, "that of logprob")
    inside = advantage.detach().masked_fill(~mask, 0.0)
    return -(logprob.masked_fill(~mask, 0.0) * inside).sum() / num_tokens


def all_actions_loss(
    logprobs: Float[Tensor, "B T V"],
    reward: Float[Tensor, "B T V"],
    mask: Bool[Tensor, "B T"],
    num_tokens: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Expected immediate reward, exact over all actions:  L = −Σ_t m_t Σ_a π(a|s_t)·r(s_t, a) / N.

    Differentiated through π and through r, which may include −β(log π − log π_SFT): the gradient of that log π has mean
    0 under π, so it changes nothing in expectation. Actions of probability 0 add 0, whatever their reward is.

    Args:
        logprobs: log π of every token under the policy being trained, normalised, nats.
        reward: of every token, nats.
        mask: True where the policy acted.
        num_tokens: N, tokens of the whole optimizer step over accumulation and ranks.

    Raises:
        ValueError: shapes that do not fit, or N ≤ 0.
    Source: ours; at γ = 0 it is on-policy distillation by reverse KL. Cf. Asadi et al. 2017, "Mean Actor Critic".
    """
    expect_positive("num_tokens", num_tokens)
    expect_dimensions("logprobs", logprobs, "B T V")
    expect_shape("reward", reward, logprobs.shape, "that of logprobs")
    mask = expect_mask(mask, logprobs.shape[:2], "that of logprobs without the vocabulary")
    silent = ~mask[..., None] | (logprobs.exp() == 0)
    probability = logprobs.masked_fill(silent, 0.0).exp()
    return -(probability * reward.masked_fill(silent, 0.0)).sum() / num_tokens


def clipped_surrogate_loss(
    logprob: Float[Tensor, "B T"],
    behaviour_logprob: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    num_tokens: float | Float[Tensor, ""],
    clip_range: float | tuple[float, float],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Several steps on one rollout:  L = −Σ m·min(ρA, clip(ρ, 1−ε, 1+ε)·A) / N,  ρ = π / π_behaviour.

    At ρ = 1, the first step on a rollout, its gradient is that of :func:`reinforce_loss`.

    Args:
        logprob: log π of the sampled tokens under the policy being trained, nats.
        behaviour_logprob: the same under the policy that sampled them; no gradient flows through it.
        advantage: return less baseline; no gradient flows through it.
        mask: True where the policy acted.
        num_tokens: N, tokens of the whole optimizer step over accumulation and ranks.
        clip_range: ε, or a pair (below 1, above 1).

    Returns:
        The loss, and the share of this batch's tokens whose gradient the clip removed.

    Raises:
        ValueError: shapes that differ, N ≤ 0, or a range outside [0, 1] below or [0, ∞) above.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    expect_positive("num_tokens", num_tokens)
    mask = expect_mask(mask, logprob.shape, "that of logprob")
    expect_shape("behaviour_logprob", behaviour_logprob, logprob.shape, "that of logprob")
    expect_shape("advantage", advantage, logprob.shape, "that of logprob")
    below, above = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    if not (0.0 <= below <= 1.0 and 0.0 <= above < math.inf):
        raise ValueError(f"clip_range is {clip_range}, expected ε in [0, 1], or a pair (below in [0, 1], above ≥ 0).")
    ratio = (logprob - behaviour_logprob.detach()).masked_fill(~mask, 0.0).exp()
    weight = advantage.detach().masked_fill(~mask, 0.0)
    clipped = ratio.clamp(1.0 - below, 1.0 + above)
    loss = -masked_sum(torch.minimum(ratio * weight, clipped * weight), mask) / num_tokens
    removed = ((ratio > 1.0 + above) & (weight > 0)) | ((ratio < 1.0 - below) & (weight < 0))
    return loss, masked_mean(removed.to(loss.dtype), mask).detach()


def bound_unlikelihood(
    advantage: Float[Tensor, "*shape"], logprob: Float[Tensor, "*shape"], floor_probability: float
) -> Float[Tensor, "*shape"]:
    """Negative advantages, reduced on improbable tokens:  A·min(1, π/p_floor) where A < 0, A elsewhere.

    The term −A·log π is unbounded below: its gradient in the logits has size |A|·(1−π), which does not vanish as π → 0,
    so the token's logit falls, and all others rise, without end. With the factor the gradient vanishes with π.

    Args:
        advantage: return less baseline.
        logprob: log π of the same tokens under the policy being trained, nats; no gradient flows through it.
        floor_probability: p_floor in (0, 1]; tokens at least as probable as this are unchanged.

    Raises:
        ValueError: shapes that differ, or p_floor outside (0, 1].
    Source: ours.
    """
    expect_shape("logprob", logprob, advantage.shape, "that of advantage")
    if not 0.0 < floor_probability <= 1.0:
        raise ValueError(f"floor_probability is {floor_probability}, expected a probability in (0, 1].")
    factor = (at_least_float32(logprob).detach() - math.log(floor_probability)).clamp(max=0.0).exp()
    return torch.where(advantage < 0, advantage * factor, advantage)
