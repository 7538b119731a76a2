"""One run writes a folder: a second one is refused, and the lock of a process that has ended blocks no run."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dpr_lightning import locking
from dpr_lightning.errors import InputError
from dpr_lightning.locking import LOCK, Owner, refuse_locked, write_lock

HOLD = """
import sys
from dpr_lightning.locking import write_lock
with write_lock(sys.argv[1], inside=sys.argv[2] == "inside"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that locks a folder until its standard input closes."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, where: str = "inside", **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(folder), where]
        environment = {**os.environ, **environment}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_first_named(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold(tmp_path / "run")
    with (
        pytest.raises(InputError, match=rf"process {process.pid} on \S+, since 20\d\d-") as raised,
        write_lock(tmp_path / "other" / ".." / "run", inside=True),
    ):
        pass
    assert str(tmp_path / "run" / LOCK) in str(raised.value)
    assert "-c" in str(raised.value)  # its command line
    process.communicate("")
    with write_lock(tmp_path / "run", inside=True):
        pass
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_death_while_a_lock_is_taken_leaves_no_file_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn, whole = tmp_path / f"{LOCK}.a1b2c3d4", tmp_path / f"{LOCK}.00000000"
    torn.touch()
    gone = replace(Owner.this_process(), started=0)
    whole.write_text(json.dumps(asdict(gone)))
    link, raced = os.link, []

    def cleared(source: str, target: Path) -> None:
        """Another process has just taken the lock and takes this file for that of a dead one."""
        if not raced:
            raced.append(source)
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", cleared)
    with write_lock(tmp_path, inside=True):
        assert {path.name for path in tmp_path.iterdir()} == {LOCK}
    assert raced


def test_a_file_is_locked_by_one_next_to_it(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    hold(tmp_path / "answers.jsonl", "beside")
    with pytest.raises(InputError, match=r"answers\.jsonl"), write_lock(tmp_path / "answers.jsonl", inside=False):
        pass
    with write_lock(tmp_path / "more.jsonl", inside=False), write_lock(tmp_path, inside=True):
        pass


@pytest.mark.parametrize(
    ("locked", "where", "target", "whole"),
    [
        ("run/policies", "inside", "run/policies", True),
        ("run/policies", "inside", "run/policies/final", True),
        ("run/policies", "inside", "run/policies/final/answers.jsonl", False),
        ("run/policies", "beside", "run/policies/final", True),
        ("run/policies", "inside", "run", True),
        ("run/policies/final", "beside", "run/policies/final", True),
        ("run/policies", "inside", "run/exported", None),
        ("run/policies", "inside", "run", None),
        ("run/policies", "beside", "run/policies2", None),
    ],
)
def test_a_path_in_or_around_a_locked_folder_is_refused(
    locked: str, where: str, target: str, whole: bool | None, tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold(tmp_path / locked, where)
    if whole is None:
        refuse_locked(tmp_path / target, whole=target != "run")
        return
    with pytest.raises(InputError, match=rf"{locked}: process {process.pid} on \S+, since 20"):
        refuse_locked(tmp_path / target, whole=whole)
    process.kill()
    process.wait()
    refuse_locked(tmp_path / target, whole=whole)


def test_the_lock_of_a_table_leaves_the_folder_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with write_lock(tmp_path, inside=True, files=("metrics.csv", "seed_*")), monkeypatch.context() as patch:
        patch.setattr(locking, "_handles", {})
        patch.setattr(Owner, "is_this_run", lambda _: False)
        refuse_locked(tmp_path / "exported" / "metrics.csv", whole=True)
        for target, whole in ((tmp_path / "metrics.csv", False), (tmp_path / "seed_1" / "a", False), (tmp_path, True)):
            with pytest.raises(InputError, match="Another run writes"):
                refuse_locked(target, whole=whole)


def test_a_process_writes_in_the_folder_that_its_parent_has_locked(tmp_path: Path) -> None:
    code = f"from dpr_lightning.locking import refuse_locked; refuse_locked({str(tmp_path / 'part')!r}, whole=True)"
    with write_lock(tmp_path, inside=False):
        subprocess.run([sys.executable, "-c", code], check=True)


def test_files_of_other_programs_are_no_locks(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text("")
    (tmp_path / ".part.lock").mkdir()
    refuse_locked(tmp_path / "run" / "part", whole=True)
    assert (tmp_path / ".run.lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    process = hold(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    with write_lock(tmp_path, inside=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_nested_use_in_one_process_ends_with_the_outer(tmp_path: Path) -> None:
    with write_lock(tmp_path, inside=True):
        with write_lock(tmp_path, inside=True):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_PROCID", "RANK", "NODE_RANK"])
def test_further_ranks_write_under_the_lock_of_rank_0(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    hold(tmp_path)
    monkeypatch.setenv(variable, "1")
    with write_lock(tmp_path, inside=True):
        pass
    monkeypatch.setenv(variable, "0")
    with pytest.raises(InputError, match="Another run"), write_lock(tmp_path, inside=True):
        pass


HERE = Owner.this_process()
ENDED = {"pid": 2**22 + 7, "started": 1}  # above Linux's largest process number


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        (ENDED, True),
        ({"started": 1}, True),  # another process has its number now
        ({}, False),
        ({"boot": "another", "started": 1}, True),  # the machine was started again
        ({"boot": "another", "host": "elsewhere"}, False),
        ({"boot": None, "host": "elsewhere"}, False),
        ({"host": "container", "namespace": "pid:[1]"}, True),  # on this kernel: its lock would not be free
        ({"boot": "another", "host": "elsewhere", "job": "7"}, True),  # SLURM started the job again here
        ({"boot": "another", "host": "elsewhere", "job": "8"}, False),
        ({"boot": "another", "host": "elsewhere", "job": "7", "restart": 1}, False),
        ({"boot": None, "namespace": None, "started": None, "pid": 2**22 + 7}, True),  # without /proc
        ({"boot": None, "namespace": None, "started": None}, False),
    ],
)
@pytest.mark.skipif(HERE.boot is None, reason="needs /proc")
def test_whose_lock_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], taken: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(HERE, **changes))))  # type: ignore[arg-type]
    if taken:
        with write_lock(tmp_path, inside=True):
            pass
        return
    with pytest.raises(InputError, match="delete") as raised, write_lock(tmp_path, inside=True):
        pass
    # The remedy works.
    Path(str(raised.value).rpartition("delete ")[2].rstrip(".")).unlink()
    with write_lock(tmp_path, inside=True):
        pass


@pytest.mark.parametrize("content", ["", '{"pid": 1}', "[]", "\x00"])
def test_a_torn_lock_file_is_no_lock(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with write_lock(tmp_path, inside=True):
        pass


def test_where_the_file_system_has_neither_links_nor_locks(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr("fcntl.flock", refuse)
    with write_lock(tmp_path, inside=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    process = hold(tmp_path)
    with pytest.raises(InputError, match=str(process.pid)), write_lock(tmp_path, inside=True):
        pass
    process.kill()
    process.wait()
    with write_lock(tmp_path, inside=True):
        pass


def test_of_many_that_come_at_once_one_writes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(HERE, **ENDED))))  # type: ignore[arg-type]
    taken: list[int] = []

    def attempt() -> None:
        with suppress(InputError):
            taken.append(locking._take(tmp_path / LOCK, tmp_path))

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    os.close(taken[0])


def test_a_forked_worker_that_outlives_its_run_keeps_no_lock(
    tmp_path: Path,
) -> None:
    program = f"""
import os, sys, time
from dpr_lightning.locking import write_lock
with write_lock({str(tmp_path)!r}, inside=True):
    if os.fork() == 0:
        os.close(1)
        time.sleep(3)
        os._exit(0)
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with write_lock(tmp_path, inside=True):
        pass


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"lock file .*file"), write_lock(tmp_path / "file" / "run", inside=True):
        pass
