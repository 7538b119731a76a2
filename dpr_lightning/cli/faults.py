"""The message and exit code of a command that ended with an exception."""

import errno
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence

import torch
from jsonargparse import ArgumentError

from dpr_lightning.cli.parse_errors import known_options, plainly
from dpr_lightning.distributed import marks
from dpr_lightning.errors import INTERRUPTED, InputError, causes, first_line
from dpr_lightning.lightning_cli.library_errors import refusal
from dpr_lightning.lightning_cli.origins import origin
from dpr_lightning.locking import is_first_rank

_LOST = re.compile(
    r"[Tt]imed out waiting|timeout caused pair closure|Connection (closed|reset) by peer|Socket Timeout|Broken pipe"
)
"""How torch.distributed says that a rank did not answer."""
USER, OURS = 2, 1
_MORE_MEMORY = """What helps, the cheapest first:
  smaller micro-batches: halve `data.token_budget` (or `data.batch_size`) and double `trainer.accumulate_grad_batches`;
    of DPR the latter alone. Activations and logits halve, and the result stays what it was.
  `model.policy.gradient_checkpointing: true`: only the input of each layer is saved, for a third more work.
  weights, gradients and optimizer in shards: an overlay of configs/strategy/; or `model.policy.lora`.
The callback `MicroBatchHalving` does the first by itself."""
_SECONDS_TO_COUNT = 180
"""Longest time that counting may delay the end of a failed command."""
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
"""Errors of the operating system that a path or the machine causes, not the program, with the remedy."""


def explain(arguments: Sequence[str], error: BaseException) -> int:
    """Print the message of an error to standard error, and return the exit code: 2 if the user can correct it, else 1.

    The traceback of an error that the user cannot correct is written to a file, which the message names.

    Args:
        arguments: of the command, its name first.
        error: that ended it.
    """
    command = arguments[0]
    known = _known(error)
    if known is not None:
        print(f"dpr {command}: {known}", file=sys.stderr)
        if command == "fit" and _MORE_MEMORY in known:
            print(_counted(arguments[1:]), file=sys.stderr)
        return USER
    if isinstance(error, KeyboardInterrupt):
        if is_first_rank():
            print(f"dpr {command}: {str(error) or 'stopped by Ctrl-C.'}", file=sys.stderr)
        return INTERRUPTED
    if _LOST.search(str(error)) and (begun := marks()):
        print(f"dpr {command}: {_lost(error, begun)}", file=sys.stderr)
        return OURS
    owner, name, raised, trace = origin(error)
    if owner == "user":
        traceback.print_exception(type(raised), raised, trace, chain=False)
        print(f"dpr {command}: your {name} raised {type(raised).__name__}: {raised}", file=sys.stderr)
    else:
        print(f"dpr {command}: {_unforeseen(error)}", file=sys.stderr)
    return OURS


def _known(error: BaseException) -> str | None:
    """The message of an error that the user can correct; None for any other."""
    chain = list(causes(error))
    # A parser that tries several types reports the last one's failure, with ours as the cause.
    for cause in chain:
        if isinstance(cause, InputError):
            return str(cause)
    if isinstance(error, ArgumentError):
        return plainly(str(error), known_options(error))
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _OF_THE_PLACE:
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}{cause.strerror}. {_OF_THE_PLACE[cause.errno]}"
    if any(isinstance(cause, torch.OutOfMemoryError) for cause in chain):
        return f"{first_line(error)}\n{_MORE_MEMORY}"
    if "No space left on device" in str(error):  # the message of safetensors and PyTorch
        return f"{first_line(error)}. {_OF_THE_PLACE[errno.ENOSPC]}"
    return refusal(error, {})


def _counted(arguments: Sequence[str]) -> str:
    """Count by how much each remedy lowers the peak, in a separate process, without the GPU that is full."""
    later = "`dpr plan --what_helps` with the same arguments prints how much, on any machine."
    if not is_first_rank():
        return later  # ranks run out together, and one answer is enough
    command = [sys.executable, "-m", "dpr_lightning.cli.main", "plan", *arguments, "--what_helps"]
    print("Counting how much of that each would save …", file=sys.stderr, flush=True)
    away = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(command, env=away, capture_output=True, text=True, check=True, timeout=_SECONDS_TO_COUNT)
    except (subprocess.SubprocessError, OSError):
        return later
    return done.stdout.strip()


def _lost(error: BaseException, begun: Mapping[int, str]) -> str:
    """The message where ranks lost each other: what each had begun, and so for which one the rest waited."""
    stages = "; ".join(f"rank {rank}: {stage}" for rank, stage in begun.items())
    return (
        f"This rank waited for another one in vain: {first_line(error)}\nWhat each had begun: {stages}.\n"
        "A rank that began its last stage long before the rest is stuck or died there; the reason is in its log. The "
        "same command goes on from the last checkpoint. Where a step may take longer, raise the "
        "strategy's timeout."
    )


def _unforeseen(error: BaseException) -> str:
    """The message of an error of this package, or of a library, that no option explains."""
    owner, name, raised, _ = origin(error)
    message = f"{type(raised).__name__}: {str(raised)[:1000]}"
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="dpr_traceback_", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(trace)
    except OSError:
        where = f"Its traceback:\n{trace}"
    else:
        where = f"Its traceback is in {file.name}"
    if owner == "library":
        return f"{name} raised {message}\nNo option is known to cause this. {where}"
    ours = "please send it with your report."
    return f"{message}\nThis is not an error that dpr_lightning foresees. {where}; {ours}"
