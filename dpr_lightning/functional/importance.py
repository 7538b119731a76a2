"""Importance weights: expectations under one distribution from samples of another."""

from jaxtyping import Bool, Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_mask, expect_positive, expect_shape


def truncated_importance(
    policy_logprob: Float[Tensor, "B T"],
    behaviour_logprob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float,
) -> Float[Tensor, "B T"]:
    """w = min(π(a|s)/b(a|s), C) of each token sampled from b, for an expectation under π.

    Without a cap E_b[w·f] = E_π[f]; the cap bounds the variance of tokens that are much more probable under π than b,
    at a bias of at most E_π[|f|; π > C·b]. The weight is that of the action alone: the states before it remain b's.

    Args:
        policy_logprob: log π of the tokens, nats.
        behaviour_logprob: log b of them.
        mask: True where a token was sampled.
        cap: C; at 1 no token has a weight above 1.

    Returns:
        w ≥ 0, without gradient; 0 outside the mask.

    Raises:
        ValueError: shapes that differ, or C ≤ 0.
    Source: Ionides 2008, Truncated importance sampling; for sampling and training by different programs, Yao et
    al. 2025, Your efficient RL framework secretly brings you off-policy RL training.
    """
    expect_positive("cap", cap)
    mask = expect_mask(mask, policy_logprob.shape, "that of policy_logprob")
    expect_shape("behaviour_logprob", behaviour_logprob, policy_logprob.shape, "that of policy_logprob")
    gap = at_least_float32(policy_logprob) - at_least_float32(behaviour_logprob)
    return gap.detach().masked_fill(~mask, float("-inf")).exp().clamp(max=cap)
