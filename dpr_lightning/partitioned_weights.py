"""Weights that DeepSpeed's ZeRO-3 has partitioned over ranks: their whole size, and the shard of this rank."""

import sys
from typing import Any, Protocol, cast

import torch
from torch import Tensor


class PartitionedWeight(Protocol):
    """The attributes that ZeRO-3 adds to a parameter, which itself is empty while no rank has gathered it."""

    ds_numel: int
    ds_shape: torch.Size
    ds_tensor: Tensor
    ds_status: Any


def is_partitioned(weight: Tensor) -> bool:
    """Whether ZeRO-3 has partitioned a weight."""
    zero = sys.modules.get("deepspeed.runtime.zero.partition_parameters")  # no weight is before that is imported
    return zero is not None and bool(zero.is_zero_param(weight))


def is_gathered(weight: Tensor) -> bool:
    """Whether the tensor has all of a weight now: ZeRO-3 has not partitioned it, or has gathered it for a layer."""
    return not is_partitioned(weight) or _partitioned(weight).ds_status.name == "AVAILABLE"


def whole_numel(weight: Tensor) -> int:
    """The number of elements of a weight when gathered."""
    return _partitioned(weight).ds_numel if is_partitioned(weight) else weight.numel()


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of a weight when gathered."""
    return _partitioned(weight).ds_shape if is_partitioned(weight) else weight.shape


def shard_of(weight: Tensor) -> Tensor:
    """This rank's shard of a weight; all of it where ZeRO-3 has not partitioned it."""
    return _partitioned(weight).ds_tensor if is_partitioned(weight) else weight


def _partitioned(weight: Tensor) -> PartitionedWeight:
    return cast(PartitionedWeight, weight)
