"""Losses of pairs: a chosen response against a rejected one to the same prompt, under an earlier policy."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_choice, expect_positive, expect_shape

SelfPlayLoss = Literal["spin", "dpo", "ipo", "rebel", "bernoulli", "brier", "hinge", "kliep", "lsif"]


def self_play_loss(
    kind: SelfPlayLoss,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    scale: float = 0.1,
    shift: float = 0.0,
    reward_gap: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Loss of each pair; with x = Σ_t log π_θ − log π_opponent of a whole response and u = scale·x + shift:

        spin, dpo   −log σ(u₊ − u₋)
        ipo         (x₊ − x₋ − 1/(2·scale))²
        rebel       (x₊ − x₋ − scale·(R₊ − R₋))²
        bernoulli   −log σ(u₊) − log σ(−u₋)
        brier       (1 − σ(u₊))² + σ(u₋)²
        hinge       max(0, 1 − u₊) + max(0, 1 + u₋)
        kliep       −u₊ + e^{u₋}
        lsif        −e^{u₊} + ½·e^{2u₋}

    ₊ is the chosen response (of self-play, a demonstration), ₋ the rejected one (the opponent's answer). At the minimum
    of GSIL's losses e^u is the density ratio of demonstrations and the opponent's answers; ``hinge`` only determines
    where this ratio exceeds 1, and ``spin`` determines it up to a factor. ``spin``, ``dpo``, ``ipo`` and ``rebel``
    depend on the difference x₊ − x₋ alone, and on no shift.

    Args:
        kind: one of the names above.
        chosen: x of the chosen responses, nats.
        rejected: x of the rejected responses, nats.
        scale: λ of SPIN, β of DPO, τ of IPO, η of REBEL (nats of log-ratio per unit of reward), α of GSIL; above 0.
        shift: β of GSIL.
        reward_gap: R₊ − R₋, for ``rebel`` alone.

    Raises:
        ValueError: an unknown kind, shapes that differ, a scale that is not above 0, or ``rebel`` without rewards.
    Source: paper: ``spin`` Chen et al. 2024, arXiv:2401.01335; ``dpo`` Rafailov et al. 2023, arXiv:2305.18290; ``ipo``
        Azar et al. 2023, arXiv:2310.12036, whose authors, by a note in TRL's code, take x a token. Code: ``rebel``
        Gao et al. 2024, arXiv:2404.16767, one iteration on pairs of a file; the others Xiao et al. 2024 (GSIL),
        arXiv:2410.10093.
    """
    expect_choice("kind", kind, get_args(SelfPlayLoss))
    expect_shape("rejected", rejected, chosen.shape, "that of chosen")
    expect_positive("scale", scale)
    if kind == "rebel":
        if reward_gap is None:
            raise ValueError("The loss `rebel` takes the difference of rewards: `reward_gap` is None.")
        expect_shape("reward_gap", reward_gap, chosen.shape, "that of chosen")
        gap = at_least_float32(chosen) - at_least_float32(rejected)
        return (gap - scale * at_least_float32(reward_gap)).square()
    if kind == "ipo":
        return (at_least_float32(chosen) - at_least_float32(rejected) - 1.0 / (2.0 * scale)).square()
    positive = scale * at_least_float32(chosen) + shift
    negative = scale * at_least_float32(rejected) + shift
    if kind in ("spin", "dpo"):
        return -torch.nn.functional.logsigmoid(positive - negative)
    if kind == "bernoulli":
        return -torch.nn.functional.logsigmoid(positive) - torch.nn.functional.logsigmoid(-negative)
    if kind == "brier":
        return (-positive).sigmoid().square() + negative.sigmoid().square()
    if kind == "hinge":
        return (1.0 - positive).clamp(min=0.0) + (1.0 + negative).clamp(min=0.0)
    if kind == "kliep":
        return negative.exp() - positive
    return 0.5 * (2.0 * negative).exp() - positive.exp()
