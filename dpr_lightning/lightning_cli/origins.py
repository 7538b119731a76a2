"""Whose code raised an exception: this package's, the user's, or another library's."""

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Literal, NamedTuple

from dpr_lightning.errors import causes

PACKAGE = "dpr_lightning"
_INSTALLED = tuple(str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib"))


class Origin(NamedTuple):
    """The code that raised an exception.

    Args:
        owner: of the code.
        name: of the library, or of the user's class or function, such as ``callback my_callbacks.Printer``.
        raised: the exception of the chain that was raised there.
        trace: from the user's first frame on; None of other code.
    """

    owner: Literal["package", "user", "library"]
    name: str
    raised: BaseException
    trace: TracebackType | None = None


def origin(error: BaseException) -> Origin:
    """Find the code that raised an error.

    User code on the traceback is the origin, since a library that it calls raises because of its arguments. Without
    any, the deepest frame decides. Parsers wrap the errors of classes that they create: the first cause counts there.

    Args:
        error: with its traceback and its causes.
    """
    chain = list(causes(error))
    for cause in chain:
        trace = cause.__traceback__
        while trace is not None:
            if _is_users(trace.tb_frame):
                return Origin("user", _user_name(trace.tb_frame), cause, trace)
            trace = trace.tb_next
    raised = next((cause for cause in chain if _library(cause) != "jsonargparse"), error)
    library = _library(raised)
    return Origin("package" if library in (PACKAGE, "") else "library", library, raised)


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """The frames of an error and of its causes, each from the outermost to the deepest."""
    for cause in causes(error):
        yield from _frames(cause)


def _frames(error: BaseException) -> Iterator[FrameType]:
    return (frame for frame, _ in walk_tb(error.__traceback__))


def _library(error: BaseException) -> str:
    """The top-level module of the deepest frame that is not the standard library's."""
    names = [_top(frame) for frame in _frames(error)]
    return next((name for name in reversed(names) if name not in sys.stdlib_module_names), "")


def _top(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_users(frame: FrameType) -> bool:
    file, name = frame.f_code.co_filename, _top(frame)
    if file.startswith("<") or name in sys.stdlib_module_names or name in (PACKAGE, "__main__"):
        return False
    path = str(Path(file).resolve())
    return not path.startswith(_INSTALLED) and "site-packages" not in path and "dist-packages" not in path


def _user_name(frame: FrameType) -> str:
    module, owner = frame.f_globals.get("__name__"), frame.f_locals.get("self")
    if owner is None:
        return f"function {module}.{frame.f_code.co_qualname}"
    # Here, since a mistyped option is answered before anything imports Lightning.
    from lightning import Callback, LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger

    kinds = {Callback: "callback", Logger: "logger", LightningModule: "module", LightningDataModule: "data module"}
    kind = next((word for base, word in kinds.items() if isinstance(owner, base)), "class")
    return f"{kind} {type(owner).__module__}.{type(owner).__qualname__}"
