"""Functions called in a separate process while the caller goes on, where a core is free for it."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """A call that was begun.

    Attributes:
        result: waits for its end and returns its result.
        cancel: gives it up where it has not started; False where it has.
    """

    result: Callable[[], Any]
    cancel: Callable[[], bool]


Begin = Callable[..., Work]
"""Begins ``function(*arguments, **options)``."""


@contextmanager
def run_in_background(log: Path, *, allowed: bool = True) -> Iterator[Begin]:
    """Yield a function that starts calls one after the other in a separate process, while the caller goes on.

    Where no core is free or ``allowed`` is False, each call runs in this process when its result is requested.

    Args:
        log: file for what the separate process prints.
        allowed: whether to start a process at all.
    """
    # Here, since the separate process imports this module, and then what its calls need.
    import torch

    from dpr_lightning.reports.console import console

    if not (allowed and spare_cores() >= torch.get_num_threads()):
        yield _call_later
        return
    console.print(f"In a separate process meanwhile: what can be done already ({log}).", style="dim")
    earlier = set(active_children())
    with ProcessPoolExecutor(1, get_context("spawn"), _print_into, (str(log),)) as pool:

        def begin(function: Callable[..., Any], *arguments: Any, **options: Any) -> Work:
            future = pool.submit(function, *arguments, **options)
            return Work(future.result, future.cancel)

        try:
            yield begin
        except BaseException:  # its result is no longer needed
            for process in set(active_children()) - earlier:
                process.terminate()
            raise


def _call_later(function: Callable[..., Any], *arguments: Any, **options: Any) -> Work:
    """A call in this process, made once, when its result is first requested."""
    return Work(cache(partial(function, *arguments, **options)), lambda: True)


def spare_cores() -> int:
    """Number of cores that this process may use, beyond one for each of its threads."""
    import torch

    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return usable - torch.get_num_threads()


def _print_into(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
