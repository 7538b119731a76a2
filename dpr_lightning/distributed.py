"""Sums over ranks, and where each of them is."""

import json
import time
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; itself when there is one. All ranks must take part."""
    return _reduced(value, torch.distributed.ReduceOp.SUM) if _several() else value


def max_over_ranks(number: int) -> int:
    """The largest of a number over all ranks; itself when there is one. All ranks must take part."""
    return int(_reduced(torch.tensor(number), torch.distributed.ReduceOp.MAX)) if _several() else number


def as_wide_on_all_ranks(value: Tensor) -> Tensor:
    """[B, T] with columns of zeros on its right, as many as the widest on any rank has. All ranks must take part."""
    return torch.nn.functional.pad(value, (0, max_over_ranks(value.shape[1]) - value.shape[1]))


def rank_and_world() -> tuple[int, int]:
    """Which rank this is, and how many there are."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _several() else (0, 1)


def _several() -> bool:
    # Other programs in this process may have begun a group of one.
    held = torch.distributed.is_available() and torch.distributed.is_initialized()
    return held and torch.distributed.get_world_size() > 1


def _reduced(value: Tensor, operation: torch.distributed.ReduceOp.RedOpType) -> Tensor:
    # Rollouts live on the CPU, and NCCL only moves what is on a GPU.
    on_gpu = "nccl" in torch.distributed.get_backend() and not value.is_cuda
    held = value.cuda() if on_gpu else value.clone()
    torch.distributed.all_reduce(held, operation)
    return held.to(value.device)


def mark(stage: str) -> None:
    """Tell the other ranks what this one has begun, for the case that they wait for it in vain. Waits for nobody."""
    if _several():
        said = json.dumps({"stage": stage, "at": time.time()})
        torch.distributed.distributed_c10d._get_default_store().set(_key(torch.distributed.get_rank()), said)


def marks() -> dict[int, str]:
    """What each rank last said it had begun, and how long ago, in seconds; empty where there is one."""
    found: dict[int, str] = {}
    if not _several():
        return found
    store = torch.distributed.distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=5))
    for rank in range(torch.distributed.get_world_size()):
        try:
            said = json.loads(store.get(_key(rank)))
        except RuntimeError:
            found[rank] = "nothing"
        else:
            found[rank] = f"{said['stage']}, {time.time() - said['at']:.0f} s ago"
    return found


def _key(rank: int) -> str:
    return f"dpr_lightning/{rank}"
