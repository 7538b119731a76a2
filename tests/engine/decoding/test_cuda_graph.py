"""Capture of CUDA graphs, with a stand-in for `torch.cuda`."""

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dpr_lightning.engine.decoding import cuda_graph

GPU = torch.device("cuda", 1)


class Stream:
    """A stream that logs its waits."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self._calls = name, calls

    def wait_stream(self, other: "Stream") -> None:
        """Log the wait."""
        self._calls.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the stand-in for `torch.cuda`."""
    calls: list[str] = []

    class Graph:
        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            calls.append(f"begin in {pool} {capture_error_mode}")

        def capture_end(self) -> None:
            calls.append("end")
            if "invalid" in calls:
                raise RuntimeError("capture was invalidated")

        def replay(self) -> None:
            calls.append("replay")

    class Pool:
        id = (0, 7)

    class Device:
        def __init__(self, device: torch.device) -> None:
            self._device = device

        def __enter__(self) -> None:
            calls.append(f"on {self._device}")

        def __exit__(self, *_: object) -> None:
            calls.append("back")

    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.MemPool", Pool)
    monkeypatch.setattr("torch.cuda.Stream", lambda device, priority: Stream(f"stream of {device}", calls))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: Stream("outside", calls))
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    monkeypatch.setattr("torch.cuda.device", Device)
    monkeypatch.setattr("torch._C._cuda_endAllocateToPool", lambda *args: calls.append(f"leave {args}"), raising=False)
    cuda_graph._capture_context.cache_clear()
    return calls


BEGUN = ["on cuda:1", "stream of 1 waits for outside", "begin in (0, 7) thread_local"]


def test_it_is_made_on_the_device_of_the_tensors_and_not_played(calls: list[str]) -> None:
    play = cuda_graph.capture(lambda: calls.append("the step"), GPU)
    assert calls == [*BEGUN, "the step", "end", "outside waits for stream of 1", "back"]
    play()
    assert calls[-1] == "replay"


def test_all_of_a_device_share_a_stream_and_memory(calls: list[str]) -> None:
    for _ in range(3):
        cuda_graph.capture(lambda: None, GPU)
    assert cuda_graph._capture_context.cache_info().misses == 1


@pytest.mark.parametrize("invalid", [False, True])
def test_one_that_fails_is_ended_and_says_why(invalid: bool, calls: list[str]) -> None:
    """Also where CUDA invalidated the capture: the allocator must leave it."""

    def asks_the_host() -> None:
        if invalid:
            calls.append("invalid")
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph.capture(asks_the_host, GPU)
    assert calls[-3:] == ["end", "leave (1, (0, 7))", "back"]


def test_where_there_are_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda_graph.SWITCH, raising=False)
    assert not cuda_graph.has_graphs(GPU)
    monkeypatch.setenv(cuda_graph.SWITCH, "1")
    assert cuda_graph.has_graphs(GPU)
    assert not cuda_graph.has_graphs(torch.device("cpu"))
    result: list[bool] = []
    other = threading.Thread(target=lambda: result.append(cuda_graph.has_graphs(GPU)))  # draws ahead
    other.start()
    other.join()
    assert result == [False]
    with monkeypatch.context() as patch:
        patch.setattr("torch.are_deterministic_algorithms_enabled", lambda: True)
        assert not cuda_graph.has_graphs(GPU)
