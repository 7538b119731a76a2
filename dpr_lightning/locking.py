"""Locks: one process writes an entry of a cache, and one run writes a folder."""

import errno
import glob
import json
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from dpr_lightning.errors import InputError

LOCK = ".dpr_lightning.lock"
"""Name of the lock file in a folder that a run writes."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK",
                  "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # fmt: skip
"""Environment variables with a process's rank: torchrun, Lightning, SLURM, MPI."""
_LINKS_REFUSED = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
"""Errors of a file system without hard links."""
_ATTEMPTS = 20
_handles: dict[Path, int] = {}
"""Descriptors of the lock files that this process has."""


@contextmanager
def only_one(entry: Path) -> Iterator[bool]:
    """Serialise processes that write the same entry of a cache; yields whether this one waited for another.

    On a file system without locks, each process writes the entry; it is replaced whole, so that none reads half of it.
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
            # Processes that wait have the deleted file open, and later ones create a new one: both then find the entry.
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()


@dataclass(frozen=True)
class Owner:
    """The process that a lock file names.

    Args:
        pid: its number.
        host: name of its machine.
        since: when it took the lock, local time with offset.
        command: its command line.
        started: start of the process in clock ticks after that of the machine; None without /proc.
        boot: id of the running kernel; None without /proc.
        namespace: of process numbers, which differs between containers; None without /proc.
        job: number of the SLURM job; None outside SLURM.
        restart: how often SLURM has started that job again.
        files: the files of the locked folder that it writes, patterns of ``fnmatch``; none: anything in it.
    """

    pid: int
    host: str
    since: str
    command: str
    started: int | None = None
    boot: str | None = None
    namespace: str | None = None
    job: str | None = None
    restart: int = 0
    files: tuple[str, ...] = ()

    @classmethod
    def this_process(cls) -> "Owner":
        """The calling process."""
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:500],
            started=_started(os.getpid()),
            boot=_boot(),
            namespace=_namespace(),
            job=os.environ.get("SLURM_JOB_ID"),
            restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    def is_gone(self, *, unlocked: bool) -> bool:
        """Whether the process has certainly ended.

        Args:
            unlocked: the kernel's lock on the lock file was free. A process that still runs on the same kernel would
                have it.
        """
        now = Owner.this_process()
        if self.boot is not None and self.boot == now.boot:
            if self.namespace != now.namespace:
                return unlocked
            return _started(self.pid) != self.started
        if self.host == now.host:
            # The machine has been started again since, or has no /proc.
            return self.boot is not None or not _answers(self.pid)
        return self.job is not None and self.job == now.job and self.restart < now.restart

    def is_this_run(self) -> bool:
        """Whether it is this process, or the process of the same run that started this one."""
        now = Owner.this_process()
        same_machine = (self.host, self.namespace) == (now.host, now.namespace)
        return same_machine and self.pid in (os.getpid(), os.getppid())


@contextmanager
def write_lock(path: str | Path, *, inside: bool, files: tuple[str, ...] = ()) -> Iterator[None]:
    """Lock ``path`` against other runs while the block runs; on ranks other than 0 nothing happens.

    A lock file names the process; it is created atomically, on NFS too, and also locked by the kernel, which releases
    it when the process ends. The lock of a process that has ended is taken over. Nested use in one process is allowed.

    Args:
        path: of a folder or a file; neither has to exist.
        inside: lock the folder ``path`` by a file in it, which creates the folder; otherwise by a file next to it.
        files: as for :class:`Owner`.

    Raises:
        InputError: another process has the lock, or the lock file cannot be written.
    """
    target = Path(path).expanduser().resolve()
    lock = target / LOCK if inside else target.with_name(f".{target.name}.lock")
    if lock in _handles or not is_first_rank():
        yield
        return
    missing = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _handles[lock] = _take(lock, target, files)
    except OSError as error:
        raise InputError(
            f"The lock file {lock} cannot be written: {error.strerror}. Choose another folder, or mend its permissions."
        ) from error
    try:
        yield
    finally:
        handle = _handles.pop(lock)
        with suppress(OSError):
            if os.fstat(handle).st_ino == lock.stat().st_ino:
                lock.unlink()
        os.close(handle)
        with suppress(OSError):  # folders that were created for the lock alone
            for folder in missing:
                folder.rmdir()


def refuse_locked(path: str | Path, *, whole: bool) -> None:
    """Refuse to write where another process has locked a folder around the path, or in it; only rank 0 checks.

    Args:
        path: of a folder or a file; it does not have to exist.
        whole: everything in ``path`` is written too.

    Raises:
        InputError: such a lock exists, and its process may still run.
    """
    if not is_first_rank():
        return
    target = Path(path).expanduser().resolve()
    for folder in (target, *target.parents):
        inside = folder / LOCK
        names = target.relative_to(folder).parts[:1]
        for lock in (inside, folder.parent / f".{folder.name}.lock"):
            owner = _running_owner(lock)
            if owner is None:
                continue
            covered = lock != inside or not owner.files or any(fnmatch(names[0], file) for file in owner.files if names)
            if covered or (whole and folder == target):
                raise InputError(_refusal(lock, folder, owner))
    for lock in target.rglob(LOCK) if whole and target.is_dir() else ():
        if (owner := _running_owner(lock)) is not None:
            raise InputError(_refusal(lock, lock.parent, owner))


def _running_owner(lock: Path) -> Owner | None:
    """The process that a lock file names; None where it has ended or is of this run, or the file is no lock."""
    if lock in _handles:
        return None
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _read(os.read(handle, 1 << 16))
        if not owner.pid or owner.is_this_run() or owner.is_gone(unlocked=lock_descriptor(handle) is True):
            return None
        return owner
    except OSError:  # a folder of that name
        return None
    finally:
        os.close(handle)


def _take(lock: Path, target: Path, files: tuple[str, ...] = ()) -> int:
    """Create or take over the lock file for this process; returns its descriptor."""
    content = json.dumps(asdict(replace(Owner.this_process(), files=files)), indent=2).encode() + b"\n"
    owner = None
    for _ in range(_ATTEMPTS):
        handle = _create(lock, content)
        if handle is not None:
            for unfinished in lock.parent.glob(f"{glob.escape(lock.name)}.{'?' * 8}"):
                _clear_if_gone(unfinished)
            return handle
        owner = _clear_if_gone(lock)
        # A worker that the process forked just before it ended closes its copy of the lock when it first runs.
        if owner is not None and not owner.is_gone(unlocked=False):
            break
        time.sleep(0.05)
    raise InputError(_refusal(lock, target, owner))


def _create(lock: Path, content: bytes) -> int | None:
    """Create the lock file with all of its content at once, locked; None where it exists."""
    handle, name = tempfile.mkstemp(prefix=f"{lock.name}.", dir=lock.parent)
    try:
        lock_descriptor(handle)
        os.write(handle, content)
        os.fsync(handle)
        try:
            os.chmod(name, 0o644)
            os.link(name, lock)
        except FileExistsError:
            if os.fstat(handle).st_nlink != 2:  # NFS may report a link that it created as one that existed
                os.close(handle)
                return None
        except FileNotFoundError:  # the process that has the lock took this file for one of a process that has ended
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in _LINKS_REFUSED:
                raise
            os.close(handle)
            return _create_exclusively(lock, content)
    finally:
        Path(name).unlink(missing_ok=True)
    return handle


def _create_exclusively(lock: Path, content: bytes) -> int | None:
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    lock_descriptor(handle)
    os.write(handle, content)
    os.fsync(handle)
    return handle


def _clear_if_gone(lock: Path) -> Owner | None:
    """The owner of a valid lock; where it has ended, the file is deleted and None returned."""
    try:
        handle = os.open(lock, os.O_RDWR if os.access(lock, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        unlocked = lock_descriptor(handle)
        owner = _read(os.read(handle, 1 << 16))
        gone = owner.is_gone(unlocked=unlocked is True) if owner.pid else unlocked is True
        if gone and unlocked is not False:
            with suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == lock.stat().st_ino:
                    lock.unlink()
            return None
        return owner
    finally:
        os.close(handle)


def _read(content: bytes) -> Owner:
    try:
        return Owner(**json.loads(content))
    except (ValueError, TypeError):
        return Owner(pid=0, host="an unknown machine", since="an unknown time", command="an unknown command")


def _refusal(lock: Path, target: Path, owner: Owner | None) -> str:
    remedy = f"Wait for it or name another folder. If that process is gone, delete {lock}."
    if owner is None:
        return f"Another run writes to {target}. {remedy}"
    where = f"process {owner.pid} on {owner.host}" if owner.pid else "another process"
    return f"Another run writes to {target}: {where}, since {owner.since} ({owner.command}). {remedy}"


def lock_descriptor(handle: int) -> bool | None:
    """Take the kernel's lock on a file: True, False where another process has it, None without support for locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_first_rank() -> bool:
    """Whether this process is rank 0 or the only one, by the launcher's variables, before any process group exists."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANK_VARIABLES)


def _started(pid: int) -> int | None:
    """Start of a process in clock ticks after that of the kernel; None without such a process or /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])  # a zombie no longer writes


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _close_in_child() -> None:
    """Called after a fork: a worker process that outlives its run must not keep the kernel's lock."""
    for handle in _handles.values():
        with suppress(OSError):
            os.close(handle)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


def _answers(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
