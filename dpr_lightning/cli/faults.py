"""What an exception means to whoever ran the command: whose fault it is, what to say, which exit code."""

import errno
import sys
import tempfile
import traceback

from jsonargparse import ArgumentError

from dpr_lightning.cli.parse_errors import plainly
from dpr_lightning.errors import InputError, causes, first_line

USER, OURS, INTERRUPTED = 2, 1, 130
_OF_THE_PLACE = {
    errno.ENOSPC: "Free some space, or write somewhere else.",
    errno.EDQUOT: "Free some of your quota, or write somewhere else.",
    errno.EROFS: "Write somewhere else.",
    errno.EACCES: "Ask for the right to, or name another place.",
    errno.EPERM: "Ask for the right to, or name another place.",
    errno.ENOTDIR: "A part of this path is a file.",
    errno.EISDIR: "Name a file.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit on open files (`ulimit -n`).",
}
"""Errors of the operating system that are nobody's mistake in a program, with the way out."""


def explain(command: str, error: BaseException) -> int:
    """Say on standard error what went wrong, and return the exit code: 2 for what the user can mend, 1 for the rest.

    The traceback of what the user cannot mend goes to a file, which the message names.
    """
    known = _known(error)
    if known is not None:
        print(f"dpr {command}: {known}", file=sys.stderr)
        return USER
    if isinstance(error, KeyboardInterrupt):
        print(f"dpr {command}: stopped.", file=sys.stderr)
        return INTERRUPTED
    print(f"dpr {command}: {type(error).__name__}: {str(error)[:1000]}\n{_kept(error)}", file=sys.stderr)
    return OURS


def _known(error: BaseException) -> str | None:
    """The message of an error that is the user's to mend; None for any other."""
    chain = list(causes(error))
    # A parser that tries several types reports the last one's failure, with ours as the cause.
    for cause in chain:
        if isinstance(cause, InputError):
            return str(cause)
    if isinstance(error, ArgumentError):
        return plainly(str(error))
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _OF_THE_PLACE:
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}{cause.strerror}. {_OF_THE_PLACE[cause.errno]}"
    if "No space left on device" in str(error):  # as safetensors and PyTorch say it
        return f"{first_line(error)}. {_OF_THE_PLACE[errno.ENOSPC]}"
    return None


def _kept(error: BaseException) -> str:
    remedy = "This is not an error that dpr_lightning foresees. "
    told = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="dpr_traceback_", suffix=".txt", delete=False) as file:
            file.write(told)
    except OSError:
        return f"{remedy}Its traceback:\n{told}"
    return f"{remedy}Its traceback is in {file.name}; please send it with your report."
