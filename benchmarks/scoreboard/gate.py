"""Turns of a worker: it runs a step when the driver asks for one, and reports its time and memory."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch


class Gate:
    """Called between two steps of a worker, by a callback of its trainer.

    Lines of JSON go to the original standard output; output of libraries goes to standard error.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._clock, self._cpu = Clock(), 0.0

    def wait(self, **fields: Any) -> None:
        """Report that everything is loaded, and wait for the first turn."""
        self._report({"ready": True, **fields})

    def begin(self) -> None:
        """Restart the clock, so that earlier work is not measured."""
        self._clock, self._cpu = Clock(), _cpu_seconds()

    def done(self, **fields: Any) -> None:
        """Report the time and memory of the step that ended, and wait for the next turn."""
        wall, cpu = self._clock.seconds(), _cpu_seconds() - self._cpu
        self._report({"wall": wall, "cpu": cpu, "peak": _peak_bytes(), **fields})

    def _report(self, fields: dict[str, Any]) -> None:
        self._answers.write(json.dumps(fields) + "\n")
        if sys.stdin.readline().strip() != "go":
            self._answers.flush()
            os._exit(0)  # without waiting for trainers and their threads
        self.begin()


class Clock:
    """Seconds since its creation; on a GPU by events of its stream, which runs behind the host."""

    def __init__(self) -> None:
        self._event = _event()
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far; waits for the GPU."""
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


def begin_after_prefill(model: Any, gate: Gate) -> None:
    """Restart the clock after each prefill: a forward pass over more than one token a row."""

    def read(_module: Any, _arguments: Any, arguments: dict[str, Any], _output: Any) -> None:
        if arguments["input_ids"].shape[1] > 1:
            gate.begin()

    model.register_forward_hook(read, with_kwargs=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_bytes() -> int:
    """Peak memory of this process; that of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # `ru_maxrss` starts at the memory of the parent process.
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
