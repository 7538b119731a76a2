"""Work in the background: the same results in either process, and no waiting for results that are not needed."""

import os
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_lightning.errors import InputError
from dpr_lightning.experiments import background as module
from dpr_lightning.experiments.background import run_in_background
from tests.experiments.background_calls import dies, print_and_count, refuses, sleeps


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda free: monkeypatch.setattr(module, "spare_cores", lambda: free)


@pytest.mark.parametrize(("free", "allowed"), [(64, True), (0, True), (64, False)])
def test_results_and_errors_are_those_of_the_function(
    free: int, allowed: bool, cores: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cores(free)
    log = tmp_path / "log"
    with run_in_background(log, allowed=allowed) as begin:
        waiting = [begin(print_and_count, text, times=3) for text in ("one", "two")]
        result = [work.result() for work in waiting]
        assert all(work.result() is each for work, each in zip(waiting, result, strict=True))  # made once
        with pytest.raises(InputError, match=r"It is wrong\. Mend it\."):
            begin(refuses).result()
    elsewhere = free > 0 and allowed
    assert [numbers for _, numbers in result] == [[0, 1, 2]] * 2
    assert len({process for process, _ in result}) == 1
    assert (result[0][0] != os.getpid()) == elsewhere
    printed = log.read_text() if elsewhere else capfd.readouterr().out
    assert printed.split() == ["one", "two"]


@pytest.mark.slow
def test_a_process_that_dies_is_not_waited_for(cores: Any, tmp_path: Path) -> None:
    cores(64)
    with pytest.raises(BrokenProcessPool), run_in_background(tmp_path / "log") as begin:
        begin(dies).result()


@pytest.mark.slow
def test_it_is_given_up_when_what_is_beside_it_fails(cores: Any, tmp_path: Path) -> None:
    cores(64)
    started = time.monotonic()

    def fails() -> None:
        with run_in_background(tmp_path / "log") as begin:
            begin(print_and_count, "running", times=1).result()
            begin(sleeps, 120.0)
            begin(sleeps, 120.0)
            raise SystemExit(75)

    with pytest.raises(SystemExit):
        fails()
    assert time.monotonic() - started < 60


def test_threads_of_this_process_take_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert module.spare_cores() == 4
