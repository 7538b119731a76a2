"""Regression of relative rewards: differences of log-ratios learn differences of rewards."""

from jaxtyping import Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_positive, expect_shape


def relative_reward_loss(
    log_ratio: Float[Tensor, "G K"], reward: Float[Tensor, "G K"], eta: float
) -> Float[Tensor, " G"]:
    """Squared error of each group, the mean over its pairs i < j; with d = ρ − η·R:

        (d_i − d_j)²  averaged  =  2/(K − 1) · Σ_i (d_i − mean d)²

    At the policy that sampled (ρ = 0) the gradient is −4η times that of leave-one-out REINFORCE on the same responses.
    Fitted exactly on all responses, π_θ ∝ π_start·e^{ηR}: a step of mirror descent.

    Args:
        log_ratio: ρ = Σ_t log π_θ − log π_start of each of the K responses to a prompt, nats.
        reward: R of each response.
        eta: η, nats of log-ratio per unit of reward; above 0. The published objective is this one divided by η².

    Raises:
        ValueError: fewer than two responses a group, shapes that differ, or η that is not above 0.
    Source: paper: Gao et al. 2024 (REBEL), arXiv:2404.16767; code: the scale, as in its authors' repository. Derived:
        the mean over all pairs of K responses, and the identity with REINFORCE.
    """
    expect_positive("eta", eta)
    expect_shape("reward", reward, log_ratio.shape, "that of log_ratio")
    if log_ratio.ndim != 2 or log_ratio.shape[1] < 2:
        raise ValueError(
            f"log_ratio has shape {list(log_ratio.shape)}: it needs groups of at least two responses to one prompt, "
            "[G, K] with K ≥ 2, for one response has nothing to be compared with."
        )
    difference = at_least_float32(log_ratio) - eta * at_least_float32(reward)
    centred = difference - difference.mean(1, keepdim=True)
    return 2.0 / (log_ratio.shape[1] - 1) * centred.square().sum(1)


def win_rates(score: Float[Tensor, "G K"]) -> Float[Tensor, "G K"]:
    """The probability that each response beats another one of its group:  mean over j ≠ i of σ(s_i − s_j).

    Args:
        score: s of each response, such as the log-odds of a judge.

    Source: ours; that REBEL covers judges whose preferences are not transitive is the paper's, arXiv:2404.16767.
    """
    score = at_least_float32(score)
    beats = (score.unsqueeze(2) - score.unsqueeze(1)).sigmoid()
    # Each response is compared with itself as well, at ½.
    return (beats.sum(2) - 0.5) / (score.shape[1] - 1)
