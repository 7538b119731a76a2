"""Sums over ranks."""

import torch
import torch.distributed
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; itself when there is one. All ranks must take part."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value
