"""Masks of the positions where the policy acted, and sums over these alone.

A mask is True where the token is the policy's action, EOS included. Values outside it are replaced before use, so
NaN and Inf there reach neither a value nor a gradient.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpr_lightning.functional._checks import expect_dimensions, expect_mask


def action_positions(mask: Bool[Tensor, "B L"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The positions of each row's actions in its sequence, packed to the left:  mask[b, position[b, t]] is True.

    Args:
        mask: sequence-aligned; True where the policy acted. Its first column is False: no logits predict it.

    Returns:
        ``position`` [B, T], indices into L, in order; 1 where there is no action, so that both ``position`` and
        ``position - 1`` (the logits that predict it) are indices of the row. ``action_mask`` [B, T], True for the
        first n_b entries of row b. T is the largest n_b of the batch and may be 0.

    Raises:
        ValueError: the mask is not two-dimensional, or its first column is not False.
    """
    expect_dimensions("mask", mask, "B L")
    mask = expect_mask(mask, mask.shape, "sequence-aligned")
    batch, length = mask.shape
    if length > 0 and bool(mask[:, 0].any()):
        row = int(mask[:, 0].nonzero()[0])
        raise ValueError(
            f"mask[{row}, 0] is True, but no logits predict the first token of a sequence. "
            "Put at least one token (a BOS or the prompt) before the first action."
        )
    count = mask.sum(dim=1)
    width = int(count.max()) if batch else 0
    rows, columns = mask.nonzero(as_tuple=True)
    position = torch.ones(batch, width, dtype=torch.int64, device=mask.device)
    position[rows, mask.cumsum(dim=1)[rows, columns] - 1] = columns
    return position, torch.arange(width, device=mask.device) < count[:, None]


def masked_sum(
    value: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "*reduced"]:
    """Sum inside the mask:  Σ m·x, over everything or along ``dim``; 0 where the mask is empty.

    Raises:
        ValueError: mask and value differ in shape.
    """
    mask = expect_mask(mask, value.shape, "that of value")
    inside = value.masked_fill(~mask, 0.0)
    return inside.sum() if dim is None else inside.sum(dim=dim)


def masked_mean(
    value: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "*reduced"]:
    """Mean inside the mask:  Σ m·x / Σ m, over everything or along ``dim``; 0 where the mask is empty.

    Raises:
        ValueError: mask and value differ in shape.
    """
    mask = expect_mask(mask, value.shape, "that of value")
    count = mask.sum() if dim is None else mask.sum(dim=dim)
    return masked_sum(value, mask, dim) / count.clamp(min=1)


def next_action(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The next acted position after each position:  n(t) = min{k > t : m_k}, and T where none follows.

    Turns of other roles leave gaps in a mask; the state that follows an action is that of the next action.
    """
    expect_dimensions("mask", mask, "B T")
    mask = expect_mask(mask, mask.shape, "[B, T]")
    batch, width = mask.shape
    if width == 0:
        return torch.zeros(batch, 0, dtype=torch.int64, device=mask.device)
    position = torch.arange(width, device=mask.device).expand(batch, width).masked_fill(~mask, width)
    nearest = position.flip(1).cummin(dim=1).values.flip(1)
    return torch.cat([nearest[:, 1:], nearest.new_full((batch, 1), width)], dim=1)
