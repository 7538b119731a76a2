"""How recordings of a GPU are asked for, before a stand-in of PyTorch's; none is made here."""

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dpr_lightning.engine.decoding import cuda_graph

GPU = torch.device("cuda", 1)


class Stream:
    """Notes who waits for whom."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self._said = name, said

    def wait_stream(self, other: "Stream") -> None:
        """Note it."""
        self._said.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of a stand-in of `torch.cuda`."""
    said: list[str] = []

    class Graph:
        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            said.append(f"begin in {pool} {capture_error_mode}")

        def capture_end(self) -> None:
            said.append("end")
            if "invalid" in said:
                raise RuntimeError("capture was invalidated")

        def replay(self) -> None:
            said.append("replay")

    class Pool:
        id = (0, 7)

    class Device:
        def __init__(self, device: torch.device) -> None:
            self._device = device

        def __enter__(self) -> None:
            said.append(f"on {self._device}")

        def __exit__(self, *_: object) -> None:
            said.append("back")

    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.MemPool", Pool)
    monkeypatch.setattr("torch.cuda.Stream", lambda device, priority: Stream(f"stream of {device}", said))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: Stream("outside", said))
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    monkeypatch.setattr("torch.cuda.device", Device)
    monkeypatch.setattr("torch._C._cuda_endAllocateToPool", lambda *index: said.append(f"leave {index}"), raising=False)
    cuda_graph._place.cache_clear()
    return said


BEGUN = ["on cuda:1", "stream of 1 waits for outside", "begin in (0, 7) thread_local"]


def test_it_is_made_on_the_device_of_the_tensors_and_not_played(said: list[str]) -> None:
    play = cuda_graph.capture(lambda: said.append("the step"), GPU)
    assert said == [*BEGUN, "the step", "end", "outside waits for stream of 1", "back"]
    play()
    assert said[-1] == "replay"


def test_all_of_a_device_share_a_stream_and_memory(said: list[str]) -> None:
    for _ in range(3):
        cuda_graph.capture(lambda: None, GPU)
    assert cuda_graph._place.cache_info().misses == 1


@pytest.mark.parametrize("invalid", [False, True])
def test_one_that_fails_is_ended_and_says_why(invalid: bool, said: list[str]) -> None:
    """Also where CUDA gave it up: the allocator must not go on with it."""

    def asks_the_host() -> None:
        if invalid:
            said.append("invalid")
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph.capture(asks_the_host, GPU)
    assert said[-3:] == ["end", "leave (1, (0, 7))", "back"]


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
