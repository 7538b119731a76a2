"""CUDA graphs: operations of a GPU, captured once and launched together.

Off unless ``DPR_GRAPHS=1``: no GPU has run them, and what they gain has not been measured.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch

SWITCH = "DPR_GRAPHS"
"""Environment variable: 1 turns CUDA graphs on."""


def has_graphs(device: torch.device) -> bool:
    """Whether decoding captures CUDA graphs on ``device``: on a GPU where the environment has ``DPR_GRAPHS=1``.

    Only in the main thread: a capture in another one, as rollouts prefetched in the background would make, forbids
    training some operations meanwhile. Not with deterministic algorithms either: PyTorch then checks indices on the
    host.
    """
    return (
        os.environ.get(SWITCH) == "1"
        and device.type == "cuda"
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
