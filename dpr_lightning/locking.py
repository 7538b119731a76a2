"""Several runs that want one folder made."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def only_one(entry: Path) -> Iterator[bool]:
    """One process at a time makes an entry; yields whether another one did before.

    Where no lock can be held, each does its own work, as nothing is torn.
    """
    lock, waited = FileLock(entry.with_name(f".{entry.name}.lock")), False
    with suppress(OSError, NotImplementedError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waited = True
            lock.acquire()
    try:
        yield waited
    finally:
        if lock.is_locked:
            # Whoever waits holds the file that is gone, and finds the entry; whoever comes finds the entry too.
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()
