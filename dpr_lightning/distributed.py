"""Sums over ranks, and marks of the stage that each rank has reached."""

import json
import time
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; the tensor itself on a single rank. A collective: every rank must call it."""
    return _reduced(value, torch.distributed.ReduceOp.SUM) if _several() else value


def max_over_ranks(number: int) -> int:
    """The largest of a number over all ranks; the number on a single rank. A collective: every rank must call it."""
    return int(_reduced(torch.tensor(number), torch.distributed.ReduceOp.MAX)) if _several() else number


def as_wide_on_all_ranks(value: Tensor) -> Tensor:
    """[B, T] padded on the right with zeros to the largest T of any rank. A collective: every rank must call it."""
    return torch.nn.functional.pad(value, (0, max_over_ranks(value.shape[1]) - value.shape[1]))


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and the number of ranks."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _several() else (0, 1)


def _several() -> bool:
    # Another library in this process may have initialised a group of one rank.
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return started and torch.distributed.get_world_size() > 1


def _reduced(value: Tensor, operation: torch.distributed.ReduceOp.RedOpType) -> Tensor:
    # Rollouts are on the CPU, and NCCL reduces only tensors on a GPU.
    on_gpu = "nccl" in torch.distributed.get_backend() and not value.is_cuda
    reduced = value.cuda() if on_gpu else value.clone()
    torch.distributed.all_reduce(reduced, operation)
    return reduced.to(value.device)


def mark(stage: str) -> None:
    """Record the stage that this rank begins in the store of the process group, without waiting for other ranks.

    If this rank then fails or hangs, the error of the others names its stage: see :func:`marks`.
    """
    if _several():
        message = json.dumps({"stage": stage, "at": time.time()})
        torch.distributed.distributed_c10d._get_default_store().set(_key(torch.distributed.get_rank()), message)


def marks() -> dict[int, str]:
    """The last stage that each rank recorded, and its age in seconds; empty on a single rank.

    Called after a collective failed, to name the rank that is missing.
    """
    result: dict[int, str] = {}
    if not _several():
        return result
    store = torch.distributed.distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=5))
    for rank in range(torch.distributed.get_world_size()):
        try:
            message = json.loads(store.get(_key(rank)))
        except RuntimeError:
            result[rank] = "nothing"
        else:
            result[rank] = f"{message['stage']}, {time.time() - message['at']:.0f} s ago"
    return result


def _key(rank: int) -> str:
    return f"dpr_lightning/{rank}"
