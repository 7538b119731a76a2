"""Operations of a GPU that are launched at once."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch


def has_graphs(device: torch.device) -> bool:
    """Whether operations are recorded there; ``DPR_GRAPHS=0`` asks for none.

    Only in the main thread: what others record, as rollouts drawn ahead would, forbids training some of what it does
    meanwhile. And not where PyTorch is to be deterministic: it then checks places on the host.
    """
    return (
        device.type == "cuda"
        and os.environ.get("DPR_GRAPHS") != "0"
        and threading.current_thread() is threading.main_thread()
        and not torch.are_deterministic_algorithms_enabled()
    )


def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what ``function`` launches, without doing it; what is given back does it, on the tensors of now.

    ``torch.cuda.graph`` would give all unused memory back to the device first, which training then asks for anew. All
    recordings of a device share the memory of what comes and goes in them, so that they must not be played at once.

    Raises:
        RuntimeError: it asks the GPU for something that may not be in a recording, such as a number on the host.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        place, outside = _place(torch.cuda.current_device()), torch.cuda.current_stream()
        place.stream.wait_stream(outside)
        with torch.cuda.stream(place.stream):
            graph.capture_begin(pool=place.pool.id, capture_error_mode="thread_local")
            try:
                function()
                graph.capture_end()
            except BaseException:
                _end(graph, place)
                raise
        outside.wait_stream(place.stream)
    return graph.replay


class _Place(NamedTuple):
    """Where recordings of a device are made: on ``stream``, their memory in ``pool``."""

    stream: torch.cuda.Stream
    pool: Any
    device: int


@cache
def _place(device: int) -> _Place:
    """One for a device: cuBLAS keeps a workspace for every stream, and memory of one pool serves no other."""
    # Streams are handed out again after a while; those of high priority to few.
    return _Place(torch.cuda.Stream(device, priority=-1), torch.cuda.MemPool(), device)


def _end(graph: torch.cuda.CUDAGraph, place: _Place) -> None:
    """End a recording that failed. What failed in it says why, and not this."""
    with suppress(RuntimeError):
        graph.capture_end()
    # A recording that CUDA gave up ends before PyTorch's allocator hears of it, which then takes what training
    # allocates for a part of it (until PyTorch 2.13 or so).
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(place.device, place.pool.id)
