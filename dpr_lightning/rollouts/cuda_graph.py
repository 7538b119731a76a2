"""Operations of a GPU that are launched at once."""

import os
from collections.abc import Callable
from contextlib import suppress

import torch


def has_graphs(device: torch.device) -> bool:
    """Whether operations can be recorded there; ``DPR_GRAPHS=0`` asks for none."""
    return device.type == "cuda" and os.environ.get("DPR_GRAPHS") != "0"


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Record what ``function`` launches, without doing it; what is given back does it, on the tensors of now.

    ``torch.cuda.graph`` would give all unused memory back to the device first, which training then asks for anew.

    Raises:
        RuntimeError: it asks the GPU for something that may not be in a recording, such as a number on the host.
    """
    graph = torch.cuda.CUDAGraph()
    outside, cached = torch.cuda.current_stream(), torch.is_autocast_cache_enabled()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(outside)
    torch.set_autocast_cache_enabled(False)  # what is kept now need not be there when it is played
    try:
        with torch.cuda.stream(stream):
            # Other threads may go on as they like: rollouts drawn ahead are written beside training.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                function()
            except BaseException:
                with suppress(RuntimeError):  # what failed says why, and not that the recording has no end
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        torch.set_autocast_cache_enabled(cached)
    outside.wait_stream(stream)
    return graph.replay
