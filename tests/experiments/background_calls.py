"""What the tests of work in the background call there: a process that imports this starts in a moment."""

import os
import time

from dpr_lightning.errors import InputError


def print_and_count(text: str, *, times: int) -> tuple[int, list[int]]:
    print(text, flush=True)
    return os.getpid(), list(range(times))


def sleeps(seconds: float) -> None:
    time.sleep(seconds)


def refuses() -> None:
    raise InputError("It is wrong. Mend it.")


def dies() -> None:
    os._exit(9)
