"""Sums over ranks."""

import torch
import torch.distributed
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; itself when there is one. All ranks must take part."""
    return _reduced(value, torch.distributed.ReduceOp.SUM) if _several() else value


def max_over_ranks(number: int) -> int:
    """The largest of a number over all ranks; itself when there is one. All ranks must take part."""
    return int(_reduced(torch.tensor(number), torch.distributed.ReduceOp.MAX)) if _several() else number


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _reduced(value: Tensor, operation: torch.distributed.ReduceOp.RedOpType) -> Tensor:
    # Rollouts live on the CPU, and NCCL only moves what is on a GPU.
    on_gpu = "nccl" in torch.distributed.get_backend() and not value.is_cuda
    held = value.cuda() if on_gpu else value.clone()
    torch.distributed.all_reduce(held, operation)
    return held.to(value.device)
