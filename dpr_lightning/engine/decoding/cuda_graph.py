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
    """Capture what ``function`` launches, without running it.

    ``torch.cuda.graph`` would first free all unused memory, which training then allocates again. All graphs of a device
    share one memory pool for intermediate tensors, so they must not be replayed at the same time.

    Returns:
        A function that replays the graph on the tensors of the capture.

    Raises:
        RuntimeError: ``function`` does something that a graph cannot hold, such as reading a number on the host.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        context, outside = _capture_context(torch.cuda.current_device()), torch.cuda.current_stream()
        context.stream.wait_stream(outside)
        with torch.cuda.stream(context.stream):
            graph.capture_begin(pool=context.pool.id, capture_error_mode="thread_local")
            try:
                function()
                graph.capture_end()
            except BaseException:
                _end(graph, context)
                raise
        outside.wait_stream(context.stream)
    return graph.replay


class _CaptureContext(NamedTuple):
    """The stream on which graphs of a device are captured, and their memory pool."""

    stream: torch.cuda.Stream
    pool: Any
    device: int


@cache
def _capture_context(device: int) -> _CaptureContext:
    """One for each device: cuBLAS has a workspace per stream, and pools do not share memory."""
    # PyTorch reuses its streams in turn; those of high priority are rarely taken.
    return _CaptureContext(torch.cuda.Stream(device, priority=-1), torch.cuda.MemPool(), device)


def _end(graph: torch.cuda.CUDAGraph, context: _CaptureContext) -> None:
    """End a failed capture without an error, so that the first one is reported."""
    with suppress(RuntimeError):
        graph.capture_end()
    # CUDA ends an invalid capture before PyTorch's allocator is notified, which would then count training's allocations
    # as part of the graph (until PyTorch 2.13 or so).
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(context.device, context.pool.id)
