"""Checks of the arguments of the functions in this folder."""

from collections.abc import Sequence

import torch
from torch import Tensor


def shape_text(shape: Sequence[int]) -> str:
    """A shape as written in messages: ``[2, 3]``."""
    return "[" + ", ".join(str(length) for length in shape) + "]"


def expect_shape(name: str, tensor: Tensor, expected: Sequence[int], like: str) -> None:
    """Raise ValueError unless ``tensor`` has the ``expected`` shape, which is that of ``like``."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{name} has shape {shape_text(tensor.shape)}, expected {shape_text(expected)} ({like}). "
            "Sequence-aligned [B, L] and action-aligned [B, T] tensors cannot be mixed: see action_positions."
        )


def expect_dimensions(name: str, tensor: Tensor, axes: str) -> None:
    """Raise ValueError unless ``tensor`` has as many dimensions as ``axes`` has names, as in ``"B T V"``."""
    names = axes.split()
    if tensor.dim() != len(names):
        raise ValueError(
            f"{name} has {tensor.dim()} dimensions, shape {shape_text(tensor.shape)}; "
            f"expected {len(names)}: [{', '.join(names)}]."
        )


def expect_mask(mask: Tensor, expected: Sequence[int], like: str) -> Tensor:
    """The mask as bool, after checking its shape. Masks of 0 and 1 (tokenizers give int64) are accepted too."""
    expect_shape("mask", mask, expected, like)
    return mask if mask.dtype == torch.bool else mask != 0


def expect_terminated(terminated: Tensor, batch: int) -> Tensor:
    """``terminated`` as bool [B], after checking its shape."""
    expect_shape("terminated", terminated, (batch,), "one flag per row of the batch")
    return terminated if terminated.dtype == torch.bool else terminated != 0


def expect_discount(discount: float) -> None:
    """Raise ValueError unless γ lies in [0, 1]."""
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount is {discount}, expected a number in [0, 1]: γ weighs what comes later.")


def expect_positive(name: str, number: float | Tensor) -> None:
    """Raise ValueError unless the number is above 0. A tensor on an accelerator is not read: that would stall it."""
    if isinstance(number, Tensor) and (number.device.type != "cpu" or number.numel() != 1):
        return
    if not float(number) > 0.0:
        raise ValueError(f"{name} is {float(number)}, expected a number above 0.")


def expect_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of: {', '.join(choices)}.")


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 as float32, wider types unchanged: differences of log-probabilities need the precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
