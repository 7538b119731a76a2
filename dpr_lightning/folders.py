"""Folders and files that are written atomically; files of other programs in a replaced folder are not lost."""

import ctypes
import errno
import glob
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from dpr_lightning.errors import InputError
from dpr_lightning.locking import lock_descriptor

log = logging.getLogger(__name__)
WRITTEN = ".dpr_lightning.json"
"""File in a folder that lists which of its files this package wrote."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_ATTEMPTS = 5
_QUIET_S = 3600
"""Seconds without a change after which a temporary folder without a lock counts as abandoned."""
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<suffix>previous|part|[a-z0-9_]{8})")
"""Names of temporary files and folders; eight characters are what ``tempfile.mkdtemp`` adds to its prefix."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block succeeds, and is deleted when it fails.

    An existing ``folder`` stays until the new one replaces it. Its files that this package did not write are moved to
    the new one; if it has none that this package wrote, it is renamed to ``NAME.before_1``.

    Raises:
        InputError: the disk is full or the folder may not be written.
    """
    unfinished: Path | None = None
    handle: int | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        handle = os.open(unfinished, os.O_RDONLY)
        lock_descriptor(handle)
        yield unfinished
        names = sorted(str(path.relative_to(unfinished)) for path in unfinished.rglob("*") if path.is_file())
        hidden = os.umask(0)
        os.umask(hidden)
        for path in (unfinished, *unfinished.rglob("*")):
            # Temporary folders, and files of some writers in them, are not readable by other users.
            path.chmod((0o777 if path.is_dir() else 0o666) & ~hidden)
            if path.is_file():
                flush(path)
        # Last: a temporary folder that has this list is complete.
        (unfinished / WRITTEN).write_text(json.dumps({"files": names}, indent=2) + "\n", encoding="utf-8")
        flush(unfinished / WRITTEN)
        replace_folder(unfinished, folder, written_files(folder))
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk as a SafetensorError.
        if isinstance(error, SafetensorError) and "IoError" not in str(error) and "os error" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"Could not write {folder}: {reason}. Nothing is left half-written there; free some space "
            "or choose another folder."
        ) from error
    finally:
        if handle is not None:
            os.close(handle)
        if unfinished is not None and unfinished.exists():
            shutil.rmtree(unfinished, ignore_errors=True)


def replace_folder(new: Path, target: Path, listed: Collection[str] | None) -> None:
    """Replace ``target`` by ``new``; files in ``target`` that this package did not write are moved to the new folder.

    Args:
        new: a folder in the same parent.
        target: exists or not.
        listed: the files in ``target`` that this package wrote, relative to it; None: not known to have any.
    """
    if target.exists() and listed is None and any(target.iterdir()):
        aside = put_aside(target)
        log.warning("%s has no file that this package wrote; it was renamed to %s.", target, aside)
    if not target.exists():
        new.rename(target)
        flush(target.parent)
        return
    _carry_over(target, new, set(listed or ()) | {WRITTEN})
    if _exchange(new, target):
        flush(target.parent)
        shutil.rmtree(new)
        return
    previous = _previous(target)
    for _ in range(_ATTEMPTS):
        if previous.exists():
            shutil.rmtree(previous)
        target.rename(previous)
        try:
            new.rename(target)
        except OSError as error:
            # Between the two renames another process saw no folder, and restored the former one as after a crash.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            break
    flush(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[TextIO]:
    """A temporary text file that becomes ``path`` when the block succeeds, and is deleted when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("x", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Clean up after a process that was killed while it wrote or replaced ``path``, a folder or a file."""
    recover_all(path.parent, glob.escape(path.name))


def recover_all(folder: Path, pattern: str, *, locked: bool = False) -> None:
    """Clean up after processes that were killed while they wrote files or folders in ``folder``.

    Where a folder is missing, the former one is renamed back, or else a complete new one is renamed to it. Temporary
    files and folders of processes that are gone are deleted.

    Args:
        folder: that they are in.
        pattern: of ``fnmatch``, of their final names.
        locked: this process has locked them, so that no other writes them, on any machine.
    """
    with suppress(OSError, ValueError):
        temporary = [
            (path, match)
            for path in folder.iterdir()
            if (match := _TEMPORARY.fullmatch(path.name)) and fnmatchcase(match["name"], pattern)
        ]
        for path, match in sorted(temporary, key=lambda item: item[1]["suffix"] != "previous"):
            target = folder / match["name"]
            if match["suffix"] == "previous":
                _put_back(path, target)
            elif path.is_dir() != (match["suffix"] == "part") and _is_abandoned(path, locked=locked):
                _clear(path, target)


def _put_back(previous: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(previous)
    else:
        previous.rename(target)
        log.warning("%s was being replaced when a run ended; the former one is back.", target)


def _clear(temporary: Path, target: Path) -> None:
    listed = written_files(temporary)
    if target.exists() or listed is None or any(not (temporary / name).is_file() for name in listed):
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink()
    else:
        temporary.rename(target)


def written_files(folder: Path) -> set[str] | None:
    """The files of a folder that this package wrote, relative to it; None for any other folder."""
    try:
        names = json.loads((folder / WRITTEN).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return set(map(str, names))


def foreign_files(folder: Path, listed: Collection[str]) -> list[str]:
    """Files of a folder that are not in ``listed``, relative to it."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(set(names) - set(listed))


def delete_written(folder: Path, listed: Collection[str]) -> bool:
    """Delete the files ``listed`` of a folder in that order, and empty folders; returns whether the folder is gone."""
    for name in listed:
        if ".." not in Path(name).parts and not Path(name).is_absolute():
            (folder / name).unlink(missing_ok=True)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            path.rmdir()
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def delete_folder(folder: Path) -> None:
    """Delete the files of a folder that this package wrote; other files stay."""
    if (listed := written_files(folder)) is not None and not delete_written(folder, [*listed, WRITTEN]):
        log.warning("%s holds files that this package did not write, which stay.", folder)


def add_written(path: Path) -> None:
    """Add a file to its folder's list of files that this package wrote."""
    names = (written_files(path.parent) or set()) | {path.name}
    (path.parent / WRITTEN).write_text(json.dumps({"files": sorted(names)}, indent=2) + "\n", encoding="utf-8")


def clear_run(folder: Path, names: Collection[str], keep: Collection[str] = ()) -> list[Path]:
    """Delete the files that a run wrote to its folder; returns the paths that stay.

    Args:
        folder: of the run.
        names: patterns of ``glob``, relative to it, of the files that a run writes, and of the folders that list their
            files, of which those in the list are deleted.
        keep: names in ``folder`` that stay in any case.
    """

    def may_go(path: Path) -> bool:
        parents = path.parents[: path.parents.index(folder)]
        return path.relative_to(folder).parts[0] not in keep and not any(parent.is_symlink() for parent in parents)

    for path in [path for name in names for path in sorted(folder.glob(name)) if may_go(path)]:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif (listed := written_files(path)) is not None:
            delete_written(path, [*listed, WRITTEN])
    # Empty folders are deleted too, inner ones first: a run that ended early leaves some that never had a file.
    patterns = {str(part) for name in names for part in (Path(name), *Path(name).parents) if part.name}
    folders = {path for pattern in patterns for path in folder.glob(pattern) if path.is_dir() and may_go(path)}
    for path in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            path.rmdir()
    return [path for path in sorted(folder.iterdir()) if path.name not in keep]


def put_aside(folder: Path, stays: Collection[str] = ()) -> Path:
    """Rename a folder to ``NAME.before_1``, or the next number that is free; returns that path.

    Args:
        folder: to rename.
        stays: names of files in it that are not moved.
    """
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before_{number}")).exists():
        number += 1
    if not stays:
        folder.rename(aside)
        return aside
    aside.mkdir()
    for path in folder.iterdir():
        if path.name not in stays:
            path.rename(aside / path.name)
    return aside


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of entries, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _carry_over(old: Path, new: Path, listed: Collection[str]) -> None:
    """Put the files of ``old`` that are not in ``listed`` into ``new``; one whose name exists there gets a suffix."""
    for name in foreign_files(old, listed):
        source, target = old / name, new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target = target.with_name(f"{target.name}.before_1")
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    # Some C libraries lack the function, and have no list of those that they have.
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _is_abandoned(path: Path, *, locked: bool) -> bool:
    """Whether the process that wrote a temporary file or folder has ended: the kernel's lock on it is free.

    A kernel may not see the locks of other machines: unless the path that it was to become is locked by a file, it must
    also be unchanged for an hour.
    """
    if not locked and time.time() - max(entry.lstat().st_mtime for entry in (path, *path.rglob("*"))) < _QUIET_S:
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        free = lock_descriptor(handle)
        return free is True or (locked and free is None)
    finally:
        os.close(handle)
