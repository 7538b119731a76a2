"""Weights that DeepSpeed's ZeRO-3 has partitioned over ranks: their whole size, and the shard of this rank."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class PartitionedWeight(Protocol):
    """The attributes that ZeRO-3 adds to a parameter, which itself is empty while no rank has gathered it."""

    ds_id: int
    ds_numel: int
    ds_shape: torch.Size
    ds_tensor: Tensor
    ds_status: Any


def whole_numel(weight: Tensor) -> int:
    """The number of elements of a weight when gathered."""
    return weight.ds_numel if isinstance(weight, PartitionedWeight) else weight.numel()


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of a weight when gathered."""
    return weight.ds_shape if isinstance(weight, PartitionedWeight) else weight.shape


def shard_of(weight: Tensor) -> Tensor:
    """This rank's shard of a weight; all of it where ZeRO-3 has not partitioned it."""
    return weight.ds_tensor if isinstance(weight, PartitionedWeight) else weight
