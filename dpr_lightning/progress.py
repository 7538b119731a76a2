"""Progress of work that takes more than a moment: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bar(title: str, total: int | None, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of a block on standard error; yields a function that is called with the number of items done.

    Args:
        title: of the work.
        total: number of items; None or 0 when unknown.
        enabled: False for ranks that show nothing.
    """
    if not enabled:
        yield lambda count: None
    elif not sys.stderr.isatty():
        yield ProgressLog(title, total or None).advance
    else:
        spent = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *spent)
        with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total or None)
            yield lambda count: bar.advance(task, count)


class ProgressLog:
    """Prints ``title: done/total, time`` to standard error, at most once in ten seconds; short work prints nothing.

    Args:
        title: of the work.
        total: number of items; None when unknown.
        seconds: between lines.
        write: prints a line; None: to standard error.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        seconds: float = SECONDS_BETWEEN_LINES,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self.title, self.total, self.seconds = title, total, seconds
        self.write = _to_standard_error if write is None else write
        self.done = 0
        self._began = self._printed = time.monotonic()

    def advance(self, count: int) -> None:
        """Count items, and print a line where one is due."""
        self.done += count
        now = time.monotonic()
        if count and now - self._printed >= self.seconds:
            self._printed = now
            amount = share_done(self.done, self.total)
            self.write(f"{self.title}: {amount}, {times(now - self._began, self.done, self.total)}")


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def share_done(done: int, total: int | None) -> str:
    """``120/2,000 (6%)``; the number alone where the total is unknown."""
    return f"{done:,}/{total:,} ({done / total:.0%})" if total else f"{done:,}"


def times(elapsed_s: float, done: float, total: float | None) -> str:
    """``0:01:10 elapsed, 0:18:00 left``, at the mean rate so far; without the latter where the total is unknown.

    Args:
        elapsed_s: seconds in which ``done`` items were done.
        done: items.
        total: items in all.
    """
    left = f", {clock(elapsed_s * (total - done) / done)} left" if total and done else ""
    return f"{clock(elapsed_s)} elapsed{left}"


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
