"""Losses of self-play imitation: a demonstration against the policy's own earlier answer to the same prompt."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_choice, expect_positive, expect_shape

SelfPlayLoss = Literal["spin", "bernoulli", "brier", "hinge", "kliep", "lsif"]


def self_play_loss(
    kind: SelfPlayLoss,
    demonstrated: Float[Tensor, " B"],
    generated: Float[Tensor, " B"],
    scale: float = 0.1,
    shift: float = 0.0,
) -> Float[Tensor, " B"]:
    """Loss of each pair; with x = Σ_t log π_θ − log π_opponent of a whole response and u = scale·x + shift:

        spin        −log σ(u₊ − u₋)                     the loss of DPO with the demonstration preferred
        bernoulli   −log σ(u₊) − log σ(−u₋)
        brier       (1 − σ(u₊))² + σ(u₋)²
        hinge       max(0, 1 − u₊) + max(0, 1 + u₋)
        kliep       −u₊ + e^{u₋}
        lsif        −e^{u₊} + ½·e^{2u₋}

    ₊ is the demonstration, ₋ the opponent's answer. All but ``spin`` estimate a density ratio, demonstrations over the
    opponent's answers: e^u at their minimum, but for ``hinge``, which only finds where it exceeds 1. ``spin`` does not
    see the shift.

    Args:
        kind: one of the names above.
        demonstrated: x of the demonstrations, nats.
        generated: x of the opponent's answers, nats.
        scale: λ of SPIN, α of GSIL; above 0.
        shift: β of GSIL.

    Raises:
        ValueError: an unknown kind, shapes that differ, or a scale that is not above 0.
    Source: ``spin`` Chen et al. 2024, arXiv:2401.01335; the others Xiao et al. 2024 (GSIL), arXiv:2410.10093, as its
        authors' released code has them.
    """
    expect_choice("kind", kind, get_args(SelfPlayLoss))
    expect_shape("generated", generated, demonstrated.shape, "that of demonstrated")
    expect_positive("scale", scale)
    positive = scale * at_least_float32(demonstrated) + shift
    negative = scale * at_least_float32(generated) + shift
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
