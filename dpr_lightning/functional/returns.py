"""Returns, and potential shaping, which at γ = 1 changes them by a constant of the start state."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpr_lightning.functional._checks import (
    at_least_float32,
    expect_dimensions,
    expect_discount,
    expect_mask,
    expect_shape,
    expect_terminated,
)
from dpr_lightning.functional.masking import next_action


def returns_to_go(
    reward: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], discount: float = 1.0
) -> Float[Tensor, "B T"]:
    """Discounted sum of the current and all later rewards:  G_t = Σ_{k≥t} γ^{k−t} m_k r_k.

    The exponent counts positions: pass action-aligned rewards where a mask has gaps and γ < 1.

    Args:
        reward: nats per token; positions outside ``mask`` are ignored, NaN included.
        mask: True where the policy acted.
        discount: γ in [0, 1]; at 1 the telescoping of potential shaping is exact.

    Returns:
        [B, T] in nats. Positions outside the mask have the return of the actions after them, 0 after the last.

    Raises:
        ValueError: shapes that differ, or γ outside [0, 1].
    Source: Sutton & Barto 2018, eq. 3.8.
    """
    expect_dimensions("reward", reward, "B T")
    mask = expect_mask(mask, reward.shape, "that of reward")
    expect_discount(discount)
    total = at_least_float32(reward).masked_fill(~mask, 0.0)
    if discount == 0.0:
        return total
    if discount == 1.0:
        return total.flip(1).cumsum(dim=1).flip(1)
    # After each round total_t covers twice as many steps: G_t(2n) = G_t(n) + γⁿ G_{t+n}(n), log₂ T rounds in all.
    span = 1
    while span < total.shape[1]:
        later = torch.nn.functional.pad(total[:, span:], (0, span))
        total = total + discount**span * later
        span *= 2
    return total


def shape_reward(
    reward: Float[Tensor, "B T"],
    potential: Float[Tensor, "B T_plus_1"],
    mask: Bool[Tensor, "B T"],
    terminated: Bool[Tensor, " B"],
    discount: float = 1.0,
) -> Float[Tensor, "B T"]:
    """Potential-based shaping:  r'_t = r_t + γΦ(s_{t+1}) − Φ(s_t).

    The state that follows an action is that of the row's next action: γ counts actions, and the tokens of other roles
    belong to the transition. Φ(terminal) = 0; a row cut by a length limit keeps Φ of its last state.
    At γ = 1 the shaped return-to-go is the old one less Φ(s_t), plus that last potential where the row was cut.

    Args:
        reward: nats per token.
        potential: ``potential[b, t]`` is Φ of the state in which ``tokens[b, t]`` is sampled; one column more than
            ``reward``, for the state after the last.
        mask: True where the policy acted; outside it the result is 0 and NaN is harmless.
        terminated: the row's last action is a real EOS.
        discount: γ in [0, 1].

    Raises:
        ValueError: shapes that do not fit (``potential`` needs T+1 columns), or γ outside [0, 1].
    Source: Ng, Harada & Russell 1999, theorem 1.
    """
    expect_dimensions("reward", reward, "B T")
    batch, width = reward.shape
    mask = expect_mask(mask, reward.shape, "that of reward")
    expect_shape("potential", potential, (batch, width + 1), "that of reward with one state more")
    terminated = expect_terminated(terminated, batch)
    expect_discount(discount)
    following, _ = following_value(potential, mask, terminated)
    here = potential[:, :width].masked_fill(~mask, 0.0)
    shaped = at_least_float32(reward).masked_fill(~mask, 0.0) + discount * following - here
    return shaped.masked_fill(~mask, 0.0)


def following_value(
    value: Float[Tensor, "B S"], mask: Bool[Tensor, "B T"], terminated: Bool[Tensor, " B"]
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The value of the state that follows each action, for masks with gaps and rows that were cut.

    Args:
        value: of the state at each position; S = T, or more where the state after the last is known.
        mask: True where the policy acted.
        terminated: the row's last action is a real EOS, so that what follows it has value 0.

    Returns:
        ``following`` [B, T], 0 outside the mask; ``known`` [B, T], False outside the mask and for the last action of a
        cut row whose next state lies beyond S.
    """
    batch, width = mask.shape
    target = next_action(mask)
    last = mask & (target == width)
    # the state that follows the last action of a cut row is the one right after it, in which there is no action yet
    after = torch.arange(1, width + 1, device=mask.device).expand(batch, width)
    target = torch.where(last, after, target)
    terminal = last & terminated[:, None]
    known = mask & (terminal | (target < value.shape[1]))
    used = known & ~terminal
    following = value.gather(1, target.masked_fill(~used, 0))
    return following.masked_fill(~used, 0.0), known
