"""Random numbers that depend on what is sampled and not on where or when.

A counter-based generator: the number for (seed, prompt, sample, position) is a hash of these four, so a sample is the
same whatever batch, rank or restart it is drawn in.
"""

import torch
from torch import Tensor

_INCREMENT = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's shifts the sign in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    value = value + _INCREMENT
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def sample_keys(seed: int, prompt: Tensor, sample: Tensor) -> Tensor:
    """One 64-bit key for each (prompt, sample): both int64 of one shape."""
    return _mix(_mix(_mix(torch.full_like(prompt, seed)) + prompt) + sample)


def counter_uniform(key: Tensor, position: Tensor) -> Tensor:
    """Uniform float64 numbers in [0, 1) for each key [B] and each of its sequence's positions [T]: [B, T]."""
    return _shift(_mix(key.unsqueeze(1) + _mix(position)), 11).double() * 2.0**-53
