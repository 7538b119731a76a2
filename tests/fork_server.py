"""A process that forks others: they start in milliseconds, where an interpreter that imports everything takes seconds.

It is itself a fork of the tests' process, from before any test ran: nothing is imported twice, and PyTorch's autograd,
which no fork can use after its parent has, is new.
"""

import gc
import importlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

MODULES = ["dpr_lightning.callbacks", "dpr_lightning.data", "dpr_lightning.lightning_cli.dpr_cli"]
# DeepSpeed imports the latter at its first step, and with it PyTorch's compiler.
SLOW_MODULES = ["tests.strategies.worker", "deepspeed.runtime.zero.muon.muon_optimizer"]
CONFIG = Path(__file__).parents[1] / "configs" / "toy" / "sft.yaml"
"""Whose options the parser reads."""


class Task(NamedTuple):
    """What a forked process does."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    environment: dict[str, str]
    folder: Path
    log: Path


class ForkServer:
    """Starts processes that have imported everything.

    Create it before this process computes gradients.
    """

    def __init__(self) -> None:
        for name in MODULES:
            importlib.import_module(name)
        self._connection, other = multiprocessing.Pipe()
        self._codes: dict[int, int] = {}
        self._pid = os.fork()
        if not self._pid:
            self._connection.close()
            _serve(other)
        other.close()

    def start(
        self,
        function: Callable[..., object],
        *arguments: Any,
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
    ) -> "ForkedProcess":
        """Call a function in a new process, with the environment, in the folder, with its output in ``log``."""
        self._connection.send(Task(function, arguments, dict(environment), folder, log))
        while not isinstance(message := self._connection.recv(), int):
            self._codes.update([message])
        return ForkedProcess(self, message)

    def exit_code(self, pid: int, timeout: float | None) -> int | None:
        """The exit code of a process; None if it still runs after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while pid not in self._codes:
            if not self._connection.poll(None if end is None else max(0.0, end - time.monotonic())):
                return None
            self._codes.update([self._connection.recv()])
        return self._codes[pid]

    def close(self) -> None:
        """End the server."""
        self._connection.close()
        os.waitpid(self._pid, 0)


@cache
def server() -> ForkServer:
    """The server of this process; ``tests/conftest.py`` calls this first, before any test runs."""
    return ForkServer()


def stop_server() -> None:
    """End the server of this process, if there is one."""
    if server.cache_info().currsize:
        server().close()


class ForkedProcess:
    """A process of the server, with the methods of :class:`subprocess.Popen` that tests call."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative where a signal ended the process.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        code = self._server.exit_code(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired("forked process", timeout or 0.0)
        return code

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._server.exit_code(self.pid, 0.0)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


def _serve(connection: Connection) -> None:
    """Start what comes through the connection and answer with its pid; at its end, send the pid and the exit code."""
    try:
        _leave_pytest()
        gc.collect()
        gc.freeze()  # a collection would copy the pages of all modules, in every fork
        running: dict[int, BaseProcess] = {}
        imported = False
        while True:
            ready = wait([connection, *running])
            for sentinel in ready:
                if isinstance(sentinel, int):
                    ended = running.pop(sentinel)
                    ended.join()
                    connection.send((ended.pid, ended.exitcode))
            if connection in ready:
                task = connection.recv()
                if not imported:
                    imported = True
                    for name in SLOW_MODULES:
                        importlib.import_module(name)
                    _fill_caches()
                    gc.collect()
                    gc.freeze()
                process = multiprocessing.get_context("fork").Process(target=_run, args=(task,))
                process.start()
                running[process.sentinel] = process
                connection.send(process.pid)
    except (EOFError, OSError):  # the tests are over
        pass
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    os._exit(0)


def _fill_caches() -> None:
    """Do what each training would do anew: compile transformers' names of weights, read signatures for the parser."""
    from dpr_lightning.lightning_cli.dpr_cli import parse_lightning
    from dpr_lightning.policies.inference_policy import frozen_policy
    from tests.tiny import write_tiny_policy

    with tempfile.TemporaryDirectory() as folder:
        frozen_policy(str(write_tiny_policy(Path(folder) / "policy")))
    parse_lightning(["fit", "--config", str(CONFIG)])


def _leave_pytest() -> None:
    """Be as a new interpreter: without pytest's capture, log handlers, signal handlers and hooks."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.unraisablehook, sys.excepthook = sys.__unraisablehook__, sys.__excepthook__
    threading.excepthook = threading.__excepthook__
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger().handlers.clear()


def _run(task: Task) -> None:
    output = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(task.folder)
    os.environ.clear()
    os.environ.update(task.environment)
    warnings.simplefilter("ignore")
    task.function(*task.arguments)
