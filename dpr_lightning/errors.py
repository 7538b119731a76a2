"""Errors that the user can resolve: they name the input, the likely cause and the remedy."""

import os
from collections.abc import Iterator

DEBUG = "DPR_DEBUG"
"""Environment variable: where it is set, errors that the user can correct keep their whole traceback too."""
REQUEUE = 75
"""Exit code of a run that the same command resumes: EX_TEMPFAIL, "try again"."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells: 128 + SIGINT."""


class InputError(ValueError):
    """Wrong input: a file, a row, an option. The command line prints the message alone and exits with 2."""


class TryAgain(Exception):
    """Raised after a failure for which the settings were changed: the same command, run again, uses the new ones.

    ``alone``: there is no other rank, so that the command may run itself again.
    """

    def __init__(self, message: str, *, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause's cause, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def shorten_traceback(error: BaseException) -> None:
    """Called where a run of the trainer fails: of an :class:`InputError` the message is left, and where the run began.

    Python prints the frames of the trainer, some sixty lines, only of other errors. ``DPR_DEBUG=1`` keeps them all.
    """
    if isinstance(error, InputError) and DEBUG not in os.environ:
        error.__traceback__ = None
        error.__cause__, error.__suppress_context__ = None, True


def first_line(error: BaseException) -> str:
    """The first line of another library's message, at most 300 characters, to be quoted in a message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def last_line(error: BaseException) -> str:
    """The last line of a message, likewise, for libraries that put the cause at the end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


def counted(number: int, noun: str) -> str:
    """A number with its noun in singular or plural: ``1 step``, ``1,000 steps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
