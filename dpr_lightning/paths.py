"""Declares which parameters are paths, and what is read or written there.

A parameter of a command, a DataModule, a callback or a specification is declared by its type:

    def export(source: ReadPath, output: Annotated[str, Writes()]) -> None: ...

Before anything is loaded, the command line compares all paths that a run writes with all that it reads, and locks what
it writes. Callbacks and DataModules outside this package are included if they have the same annotations.
"""

import dataclasses
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict


class Reads:
    """Marks a parameter whose value, where it is a path that exists, is read.

    Args:
        names: of what is read in that folder, patterns of ``glob``; none: all of it.
        hidden: whether that includes files and folders whose names begin with a dot.
    """

    def __init__(self, *names: str, hidden: bool = True) -> None:
        self.names = names
        self.hidden = hidden

    def __repr__(self) -> str:
        """The text in ``--help``."""
        return "path that is read"


class Writes:
    """Marks a parameter whose value is a path that is written.

    Args:
        names: of the files and folders that are written, or replaced, in that folder, patterns of ``glob``; none: the
            path itself.
        whole: folders, each replaced as a whole: one that this package did not write is refused.
        marks: texts of which one is in every file that this package writes there; any other file is refused.
        shared: several runs may write there at once, so it is not locked.
        resumes: ``--ckpt_path`` may name a file there, from which the run that wrote it resumes.
        suffix: the file that is written has the path of the option with this suffix, such as ``.html``; None: without
            a change.
    """

    def __init__(
        self,
        *names: str,
        whole: bool = False,
        marks: tuple[str, ...] = (),
        shared: bool = False,
        resumes: bool = False,
        suffix: str | None = None,
    ) -> None:
        self.names = names
        self.suffix = suffix
        self.whole = whole
        self.marks = marks
        self.shared = shared
        self.resumes = resumes

    def __repr__(self) -> str:
        """The text in ``--help``."""
        return "path that is written"


ReadPath = Annotated[str, Reads()]
RowPath = Annotated[str, Reads(hidden=False)]
"""A path of rows; hidden files of a folder are not read."""
REPORT_MARKS = ('content="dpr_lightning"', '"preview_words"')
"""Texts that are in every page that this package writes, and in report.json."""


@dataclass(frozen=True)
class PathUse:
    """One path of a run.

    Args:
        option: that sets it, as on the command line.
        path: the option's value, with ``~`` expanded.
        use: what happens there.
    """

    option: str
    path: Path
    use: Reads | Writes


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters of a function or a class, including those of a class's bases.

    Types that cannot be resolved are left out: they belong to other libraries.
    """
    result: dict[str, Any] = {}
    if is_typeddict(function):
        return get_type_hints(function, include_extras=True)
    bases = reversed(function.__mro__) if inspect.isclass(function) else []
    parts = [vars(base).get("__init__") for base in bases] or [function]
    for part in filter(None, parts):
        try:
            result |= get_type_hints(part, include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    result.pop("return", None)
    return result


def path_uses(annotation: Any, value: Any, option: str) -> Iterator[PathUse]:
    """All declared paths in a value.

    Args:
        annotation: type of the parameter; ``Any`` where it is not known.
        value: plain data, a dataclass, or a mapping with ``class_path`` and ``init_args``.
        option: name of the parameter.
    """
    if value in (None, ""):
        return
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        uses = [mark for mark in marks if isinstance(mark, (Reads, Writes))]
        if uses and isinstance(value, (str, os.PathLike)):
            path = Path(os.path.expanduser(value))
            for mark in uses:
                suffix = mark.suffix if isinstance(mark, Writes) else None
                yield PathUse(option, path if suffix is None else path.with_suffix(suffix), mark)
            return
        yield from path_uses(inner, value, option)
    elif isinstance(value, Mapping) and "class_path" in value:
        yield from _uses_of_class(value, option)
    elif get_origin(annotation) in (Union, UnionType):
        # A type of the union that does not fit the value yields nothing.
        seen: set[tuple[str, Path, int]] = set()
        for choice in get_args(annotation):
            for use in path_uses(choice, value, option):
                key = (use.option, use.path, id(use.use))
                if key not in seen:
                    seen.add(key)
                    yield use
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from path_uses(type(value), dataclasses.asdict(value), option)
    elif isinstance(value, Mapping):
        is_specification = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
        kinds = parameters_of(annotation) if is_specification or is_typeddict(annotation) else {}
        arguments = get_args(annotation)
        other = arguments[1] if len(arguments) == 2 else Any
        for name, inner in value.items():
            yield from path_uses(kinds.get(str(name), other), inner, f"{option}.{name}" if option else str(name))
    elif isinstance(value, (list, tuple)):
        kind = (get_args(annotation) or (Any,))[0]
        for index, inner in enumerate(value):
            named = isinstance(inner, Mapping) and "class_path" in inner
            yield from path_uses(kind, inner, _class_name(inner) if named else f"{option}[{index}]")


def _uses_of_class(value: Mapping[str, Any], option: str) -> Iterator[PathUse]:
    kinds = parameters_of(imported) if (imported := import_class(value)) is not None else {}
    for name, inner in (value.get("init_args") or {}).items():
        yield from path_uses(kinds.get(name, Any), inner, f"{option}.{name}")


def import_class(value: Mapping[str, Any]) -> type | None:
    """The class that ``class_path`` names; None where there is none of that name."""
    module, _, name = str(value["class_path"]).rpartition(".")
    try:
        kind = pkgutil.resolve_name(f"{module}:{name}")
    except (ImportError, ValueError, AttributeError):
        return None
    return kind if isinstance(kind, type) else None


def _class_name(value: Mapping[str, Any]) -> str:
    return str(value["class_path"]).rpartition(".")[2]
