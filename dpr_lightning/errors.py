"""Errors that are the user's to mend: they say what was found, the likely cause and the remedy."""

from collections.abc import Iterator

REQUEUE = 75
"""Exit code of a run that can go on, by the same command: EX_TEMPFAIL, "try again"."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class InputError(ValueError):
    """Wrong input: a file, a row, an option. The command line prints the message alone and exits with 2."""


class TryAgain(Exception):
    """The same command should be run once more: it has seen to it that it will go on otherwise.

    ``alone``: no other rank takes part, so the command may do so itself.
    """

    def __init__(self, message: str, *, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, what that came from, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def first_line(error: BaseException) -> str:
    """What another library says, short enough to stand inside a message of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def last_line(error: BaseException) -> str:
    """As :func:`first_line`, of libraries that come to the point at the end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


def counted(number: int, noun: str) -> str:
    """A number with its noun, as messages have it: ``1 step``, ``1,000 steps``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
