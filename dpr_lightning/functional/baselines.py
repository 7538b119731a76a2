"""Baselines: subtracted from a return to reduce the variance of the gradient without changing its mean.

A baseline b_t leaves E[∇log π(a_t|s_t)·(G_t − b_t)] unchanged when it does not depend on a_t. That holds for the
leave-one-out mean. The batch and position means include each sample's return itself, which scales the gradient by
about 1 − 1/B; the response mean depends on all of the row's actions and is biased.

On several ranks pass ``reduce``, a function that sums a tensor over them; the mean is then that of all ranks.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_dimensions, expect_mask

SumOverRanks = Callable[[Tensor], Tensor]

# A spread below this many units in the last place of the values is rounding, not signal.
_ROUNDING = 16.0


def leave_one_out_baseline(
    returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group_size: int
) -> Float[Tensor, "B T"]:
    """Mean return, at the same position, of the other samples of the prompt:  b_it = Σ_{j≠i} m_jt G_jt / Σ_{j≠i} m_jt.

    Unbiased: the other samples do not depend on this one's actions.

    Args:
        returns: nats; the K samples of a prompt are K consecutive rows.
        mask: True where the policy acted; samples that have ended do not count.
        group_size: K ≥ 2.

    Returns:
        [B, T], 0 where no other sample is still acting.

    Raises:
        ValueError: shapes that differ, K < 2, or B not a multiple of K.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO), here per position.
    """
    expect_dimensions("returns", returns, "B T")
    mask = expect_mask(mask, returns.shape, "that of returns")
    batch, width = returns.shape
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}: leaving one out needs at least 2 samples of each prompt.")
    if batch % group_size:
        raise ValueError(
            f"{batch} rows do not divide into groups of {group_size} samples. The samples of a prompt must lie next "
            "to each other, and a batch must hold whole groups."
        )
    grouped = _inside(returns, mask).view(batch // group_size, group_size, width)
    acting = mask.view(batch // group_size, group_size, width).to(grouped.dtype)
    rest = acting.sum(dim=1, keepdim=True) - acting
    total = grouped.sum(dim=1, keepdim=True) - grouped
    mean = (total / rest.clamp(min=1.0)).masked_fill(rest == 0, 0.0)
    return mean.reshape(batch, width)


def batch_baseline(
    returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], reduce: SumOverRanks | None = None
) -> Float[Tensor, "B T"]:
    """One number, the mean return of all tokens:  b = Σ m G / Σ m.

    Args:
        returns: nats.
        mask: True where the policy acted.
        reduce: sums a tensor over ranks.

    Returns:
        [B, T], the same everywhere; 0 where the mask is empty.

    Raises:
        ValueError: shapes that differ.
    """
    expect_dimensions("returns", returns, "B T")
    mask = expect_mask(mask, returns.shape, "that of returns")
    inside = _inside(returns, mask)
    sums = _summed(torch.stack([inside.sum(), mask.sum().to(inside.dtype)]), reduce)
    return (sums[0] / sums[1].clamp(min=1.0)).expand_as(inside)


def position_baseline(
    returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], reduce: SumOverRanks | None = None
) -> Float[Tensor, "B T"]:
    """Mean return at each position over the rows still acting there:  b_t = Σ_i m_it G_it / Σ_i m_it.

    Args:
        returns: nats.
        mask: True where the policy acted.
        reduce: sums a tensor over ranks, which must then share T.

    Returns:
        [B, T], every row the same; 0 where no row is acting.

    Raises:
        ValueError: shapes that differ.
    """
    expect_dimensions("returns", returns, "B T")
    mask = expect_mask(mask, returns.shape, "that of returns")
    inside = _inside(returns, mask)
    sums = _summed(torch.stack([inside.sum(dim=0), mask.sum(dim=0).to(inside.dtype)]), reduce)
    return (sums[0] / sums[1].clamp(min=1.0)).expand_as(inside)


def response_baseline(returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Mean return over the tokens of each row:  b_i = Σ_t m_it G_it / Σ_t m_it.

    Biased: it includes the returns of the row's actions. Low in variance, which is why PRIME uses one of this kind.

    Returns:
        [B, T], the same along each row; 0 for rows without tokens.

    Raises:
        ValueError: shapes that differ.
    Source: Cui et al. 2025 (PRIME), arXiv:2502.01456.
    """
    expect_dimensions("returns", returns, "B T")
    mask = expect_mask(mask, returns.shape, "that of returns")
    inside = _inside(returns, mask)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (inside.sum(dim=1, keepdim=True) / count).expand_as(inside)


def whiten(
    advantage: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], reduce: SumOverRanks | None = None
) -> Float[Tensor, "B T"]:
    """Advantages with mean 0 and population standard deviation 1 over all tokens:  (A − mean) / std.

    Args:
        advantage: any unit; the result has none, so β and the learning rate lose their scale.
        mask: True where the policy acted; outside it the result is 0.
        reduce: sums a tensor over ranks.

    Returns:
        [B, T]; all 0 when the advantages agree to rounding.

    Raises:
        ValueError: shapes that differ.
    """
    expect_dimensions("advantage", advantage, "B T")
    mask = expect_mask(mask, advantage.shape, "that of advantage")
    inside = _inside(advantage, mask)
    total, square, count = _summed(
        torch.stack([inside.sum(), inside.square().sum(), mask.sum().to(inside.dtype)]), reduce
    )
    mean, mean_square = total / count.clamp(min=1.0), square / count.clamp(min=1.0)
    (deviation,) = _summed((inside - mean).masked_fill(~mask, 0.0).square().sum()[None], reduce)
    return standardise(inside, mask, mean, mean_square, deviation / count.clamp(min=1.0))


def position_moments(
    value: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], reduce: SumOverRanks | None = None
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Mean, mean square and variance (population) at each position over the rows still acting there, each [T]."""
    inside = _inside(value, mask)
    total, square, count = _summed(
        torch.stack([inside.sum(dim=0), inside.square().sum(dim=0), mask.sum(dim=0).to(inside.dtype)]), reduce
    )
    mean, mean_square = total / count.clamp(min=1.0), square / count.clamp(min=1.0)
    deviation = _summed((inside - mean).masked_fill(~mask, 0.0).square().sum(dim=0), reduce)
    return mean, mean_square, deviation / count.clamp(min=1.0)


def standardise(
    value: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    mean: Float[Tensor, "*state"],
    mean_square: Float[Tensor, "*state"],
    variance: Float[Tensor, "*state"],
) -> Float[Tensor, "B T"]:
    """(x − mean) / std inside the mask and 0 outside; 0 too where the variance is rounding of ``mean_square``."""
    inside = _inside(value, mask)
    floor = (_ROUNDING * torch.finfo(inside.dtype).eps) ** 2 * mean_square
    spread = variance > floor
    score = (inside - mean) / variance.masked_fill(~spread, 1.0).sqrt()
    return score.masked_fill(~(mask & spread), 0.0)


def _inside(value: Tensor, mask: Tensor) -> Tensor:
    return at_least_float32(value).masked_fill(~mask, 0.0)


def _summed(value: Tensor, reduce: SumOverRanks | None) -> Tensor:
    return value if reduce is None else reduce(value)
