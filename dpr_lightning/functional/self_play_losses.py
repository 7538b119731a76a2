"""Losses of self-play imitation: a demonstration against an earlier policy's answer to the same prompt."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_choice, expect_positive, expect_shape

SelfPlayLoss = Literal["spin", "bernoulli", "brier", "hinge", "kliep", "lsif"]


def self_play_loss(
    kind: SelfPlayLoss,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    scale: float = 0.1,
    shift: float = 0.0,
) -> Float[Tensor, " B"]:
    """Loss of each pair; with x = Σ_t log π_θ − log π_opponent of a whole response and u = scale·x + shift:

        spin        −log σ(u₊ − u₋)                     the loss of DPO
        bernoulli   −log σ(u₊) − log σ(−u₋)
        brier       (1 − σ(u₊))² + σ(u₋)²
        hinge       max(0, 1 − u₊) + max(0, 1 + u₋)
        kliep       −u₊ + e^{u₋}
        lsif        −e^{u₊} + ½·e^{2u₋}

    ₊ is the demonstration (chosen), ₋ the opponent's answer (rejected). At their minimum e^u is the density ratio of
    demonstrations and the opponent's answers; ``hinge`` only determines where this ratio exceeds 1, and ``spin``
    determines it up to a factor. ``spin`` does not depend on the shift.

    Args:
        kind: one of the names above.
        chosen: x of the demonstrations, nats.
        rejected: x of the opponent's answers, nats.
        scale: λ of SPIN, α of GSIL; above 0.
        shift: β of GSIL.

    Raises:
        ValueError: an unknown kind, shapes that differ, or a scale that is not above 0.
    Source: ``spin`` Chen et al. 2024, arXiv:2401.01335; the others Xiao et al. 2024 (GSIL), arXiv:2410.10093, as its
        authors' released code has them.
    """
    expect_choice("kind", kind, get_args(SelfPlayLoss))
    expect_shape("rejected", rejected, chosen.shape, "that of chosen")
    expect_positive("scale", scale)
    positive = scale * at_least_float32(chosen) + shift
    negative = scale * at_least_float32(rejected) + shift
    if kind == "spin":
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
