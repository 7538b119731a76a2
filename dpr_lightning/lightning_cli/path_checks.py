"""Check paths before anything is loaded: no command overwrites its inputs, or files that this package did not write."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, wraps
from inspect import signature
from itertools import combinations
from pathlib import Path
from typing import Any

from dpr_lightning.errors import InputError
from dpr_lightning.folders import recover, recover_all, written_files
from dpr_lightning.locking import is_first_rank, refuse_locked, write_lock
from dpr_lightning.paths import PathUse, Reads, Writes, parameters_of, path_uses
from dpr_lightning.policies.adapters import base_of, is_adapter

CONFIG = "--config"
CHECKPOINT = "ckpt_path"
_SEARCHED = 1 << 16
"""Number of bytes at either end of a file in which a mark is searched."""
Key = tuple[int, int, tuple[str, ...]]
"""Device and inode of the deepest folder that exists, and the names below it."""
Chains = Callable[[Path], list[Key]]
"""The keys of a path, from :func:`_chain`, computed once for all the pairs that it is in."""


def guarded(command: Callable[..., Any], configs: Sequence[Path]) -> Callable[..., Any]:
    """Wrap a command so that it checks and locks its paths before it begins.

    Args:
        command: a function whose parameters' annotations declare what they read and write.
        configs: files that its options are read from.
    """

    @wraps(command)
    def run(**values: Any) -> Any:
        arguments = signature(command).bind(**values)
        arguments.apply_defaults()
        kinds = parameters_of(command)
        uses = [use for name, value in arguments.arguments.items() for use in path_uses(kinds[name], value, name)]
        with protected(uses, configs):
            return command(**values)

    return run


@contextmanager
def protected(uses: Iterable[PathUse], configs: Sequence[Path] = ()) -> Iterator[None]:
    """Check the paths of a command, and lock those that it writes until the context ends.

    Args:
        uses: every path that the command reads or writes.
        configs: files that its options are read from.

    Raises:
        InputError: a path that is written is also read, is written by two options, or has content that this package did
            not write; or another process writes there.
    """
    uses = [*uses, *(PathUse(CONFIG, path, Reads()) for path in configs)]
    for use in uses:
        if not os.path.exists(use.path):
            recover(use.path)
    reads = [existing for use in uses if isinstance(use.use, Reads) for existing in _existing(use)]
    reads += [base for use in reads for base in _bases(use)]
    writes = [(use, use.use) for use in uses if isinstance(use.use, Writes)]
    chains = cache(_chain)
    for write, how in writes:
        for read in reads:
            _refuse_collision(write, how, read, chains)
    for (first, _), (second, _) in combinations(writes, 2):
        _refuse_two_writers(first, second, chains)
    _refuse_locked(writes)
    if is_first_rank():  # which may have begun to write when further ranks come here
        for write, how in writes:
            for path in _paths(write):
                _refuse_foreign(write, how, path)
    with ExitStack() as locks:
        for (path, inside), files in sorted(_locks(writes).items()):
            locks.enter_context(write_lock(path, inside=inside, files=files))
        _refuse_locked(writes)  # again: of two processes that lock at once, one sees the other's lock
        if is_first_rank():
            _recover_written(writes)
        yield


def _recover_written(writes: Iterable[tuple[PathUse, Writes]]) -> None:
    """Clean up after earlier commands that were killed while they wrote to the same paths."""
    for use, how in writes:
        path = Path(os.path.abspath(use.path))
        for output in [path / name for name in how.names] or [path.with_name(glob.escape(path.name))]:
            recover_all(output.parent, output.name, locked=not how.shared)


def _refuse_locked(writes: Iterable[tuple[PathUse, Writes]]) -> None:
    for use, how in writes:
        for path in _paths(use) if not how.shared else ():
            refuse_locked(path, whole=not how.marks)


def _locks(writes: Iterable[tuple[PathUse, Writes]]) -> dict[tuple[Path, bool], tuple[str, ...]]:
    """The paths to lock, each with whether the lock is inside the folder; and the files, if only files are written."""
    uses: dict[tuple[Path, bool], list[Writes]] = {}
    for use, how in writes:
        if not how.shared:
            uses.setdefault((Path(os.path.realpath(use.path)), bool(how.names)), []).append(how)
    return {
        lock: tuple(name for how in hows for name in how.names) if all(how.marks for how in hows) else ()
        for lock, hows in uses.items()
    }


def _existing(use: PathUse) -> list[PathUse]:
    """A path that is read, or all files that its pattern matches; none where it is no path of this machine."""
    if os.path.exists(use.path):
        return [use]
    matches = glob.glob(str(use.path), recursive=True) if glob.has_magic(str(use.path)) else []
    return [replace(use, path=Path(match)) for match in matches]


def _bases(use: PathUse) -> Iterator[PathUse]:
    """The base of an adapter that is read, the base of that, and so on."""
    seen: set[Path] = set()
    option, folder = use.option, use.path
    while folder not in seen and is_adapter(folder):
        seen.add(folder)
        try:
            base = base_of(folder)
        except InputError:  # raised again where the adapter is loaded, if its base is needed there
            return
        option = f"the base of the adapter in {option}"
        for source in (base.source, base.tokenizer):
            if source is not None and os.path.exists(source):
                yield PathUse(option, Path(source), Reads())
        folder = Path(base.source or "")


def _paths(use: PathUse) -> list[Path]:
    """The paths of a use: for each file name in a folder, those that exist and the one that would be created."""
    if not use.use.names:
        return [use.path]
    paths: dict[Path, None] = {}
    for name in use.use.names:
        paths |= dict.fromkeys(sorted(use.path.glob(name)))
        paths[use.path / name] = None
    return list(paths)


def _chain(path: Path) -> list[Key]:
    """Keys of a path and of all its parent folders, the path first; the same for all spellings of a path."""
    current = Path(os.path.realpath(path))
    names: tuple[str, ...] = ()
    while not os.path.exists(current):
        names = (current.name, *names)
        current = current.parent
    deepest = current.stat()
    keys: list[Key] = [(deepest.st_dev, deepest.st_ino, names[:length]) for length in range(len(names), -1, -1)]
    return keys + [((stat := parent.stat()).st_dev, stat.st_ino, ()) for parent in current.parents]


def _overlap(first: Path, second: Path, chains: Chains) -> str | None:
    """Relation of the first path to the second: " in …", " around …", "" where they are the same, None where apart."""
    one, two = chains(first), chains(second)
    if one[0] == two[0]:
        return ""
    if two[0] in one:
        return f" in {second}"
    return f" around {second}" if one[0] in two else None


def _is_hidden_in(target: Path, source: Path) -> bool:
    """Whether a path is in a folder, under a name that begins with a dot."""
    names = Path(os.path.relpath(os.path.realpath(target), os.path.realpath(source))).parts
    return names[:1] != (os.pardir,) and any(name.startswith(".") for name in names)


def _refuse_collision(write: PathUse, how: Writes, read: PathUse, chains: Chains) -> None:
    if read.option == CHECKPOINT and how.resumes:
        return
    for target in _paths(write):
        for source in _paths(read):
            relation = _overlap(target, source, chains) if os.path.exists(source) else None
            if relation is None or (read.option == CONFIG and how.marks and _has_mark(source, how.marks)):
                continue
            passed_over = isinstance(read.use, Reads) and not read.use.hidden and os.path.isdir(source)
            if passed_over and _is_hidden_in(target, source):
                continue
            hint = (
                f", or a hidden one there, such as {source}/.cache"
                if passed_over and relation == f" in {source}"
                else ""
            )
            raise InputError(
                f"{_quoted(write)} writes {_printable(target)}{relation}, which {_quoted(read)} reads: the run would "
                f"overwrite what it needs. Nothing was changed. Name another path for {_quoted(write)}{hint}."
            )


def _refuse_two_writers(first: PathUse, second: PathUse, chains: Chains) -> None:
    for target in _paths(first):
        for other in _paths(second):
            if (first.option, target) == (second.option, other):
                continue
            if (relation := _overlap(target, other, chains)) is not None:
                raise InputError(
                    f"{_quoted(first)} writes {_printable(target)}{relation}, which {_quoted(second)} writes too: "
                    f"one would overwrite the other. Name another path for {_quoted(second)}."
                )


def _printable(path: Path) -> Path:
    """The path for a message: its folder where its name is a pattern."""
    return path.parent if glob.has_magic(path.name) and not path.exists() else path


def _quoted(use: PathUse) -> str:
    owner, _, option = use.option.rpartition(" ")
    return f"{owner} `{option}`".strip()


def _refuse_foreign(write: PathUse, how: Writes, path: Path) -> None:
    remedy = f"Name another path for {_quoted(write)}, or move that one away."
    if how.whole and os.path.exists(path) and written_files(path) is None:
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        if path.is_dir() and not names:
            return
        content = f"a folder with {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "a file"
        raise InputError(
            f"{_quoted(write)} would replace {path}, {content}, which this package did not write. {remedy}"
        )
    if how.marks and path.is_dir():
        raise InputError(f"{_quoted(write)} writes the file {path}, and there is a folder of that name. {remedy}")
    if how.marks and path.is_file() and path.stat().st_size and not _has_mark(path, how.marks):
        raise InputError(f"{_quoted(write)} would overwrite {path}, a file that this command did not write. {remedy}")


def _has_mark(path: Path, marks: Iterable[str]) -> bool:
    """Whether one of the texts occurs near the beginning or the end of a file."""
    with path.open("rb") as handle:
        content = handle.read(_SEARCHED)
        handle.seek(max(len(content), path.stat().st_size - _SEARCHED))
        content += handle.read()
    return any(mark.encode() in content for mark in marks)
