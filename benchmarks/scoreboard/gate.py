"""How a worker takes turns: it does a step when the driver says so, and tells what the step took."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch


class Gate:
    """Between two steps of a worker, standing where a trainer calls back.

    Lines of JSON go to what was standard output; what libraries print goes to standard error.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._clock, self._cpu = Clock(), 0.0

    def ready(self, **said: Any) -> None:
        """Everything is loaded; wait for the first turn."""
        self._say({"ready": True, **said})

    def begin(self) -> None:
        """Measure from here on: what was before is not the workload."""
        self._clock, self._cpu = Clock(), _cpu_seconds()

    def done(self, **said: Any) -> None:
        """A step has ended; tell what it took, and wait for the next."""
        wall, cpu = self._clock.seconds(), _cpu_seconds() - self._cpu
        self._say({"wall": wall, "cpu": cpu, "peak": _peak_bytes(), **said})

    def _say(self, said: dict[str, Any]) -> None:
        self._answers.write(json.dumps(said) + "\n")
        if sys.stdin.readline().strip() != "go":
            self._answers.flush()
            os._exit(0)  # trainers and their threads have nothing left to do
        self.begin()


class Clock:
    """Seconds since it was made: of the GPU's stream where there is one, which may still be at work."""

    def __init__(self) -> None:
        self._event = _event()
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        """Waits for the GPU."""
        if self._event is None:
            return time.perf_counter() - self._begun
        end = _event()
        torch.cuda.synchronize()
        return float(self._event.elapsed_time(end)) / 1000


def _event() -> Any:
    if not torch.cuda.is_available():
        return None
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def begin_after_reading(model: Any, gate: Gate) -> None:
    """Start the clock when a model has read more than a token a row."""

    def read(_module: Any, _arguments: Any, given: dict[str, Any], _output: Any) -> None:
        if given["input_ids"].shape[1] > 1:
            gate.begin()

    model.register_forward_hook(read, with_kwargs=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_bytes() -> int:
    """The most memory that this process ever had; of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # `ru_maxrss` begins with what the process had that started this one.
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(said["VmHWM"].split()[0]) * 1024
