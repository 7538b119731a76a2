"""Progress of long work: lines in a log, at most one in a while."""

import itertools

import pytest

from dpr_lightning import progress
from dpr_lightning.progress import clock, progress_bar, share_done, times


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by four seconds each time it is read."""
    counter = itertools.count(0, 4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(counter)))


@pytest.mark.usefixtures("seconds")
def test_a_log_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("answers", 2000) as advance:
        for _ in range(7):
            advance(100)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "answers: 300/2,000 (15%), 0:00:12 elapsed, 0:01:08 left",
        "answers: 600/2,000 (30%), 0:00:24 elapsed, 0:00:56 left",
    ]


@pytest.mark.usefixtures("seconds")
def test_an_unknown_total_and_a_rank_that_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("rows", None) as advance:
        for _ in range(3):
            advance(100)
    assert capsys.readouterr().err == "rows: 300, 0:00:12 elapsed\n"
    with progress_bar("rows", 10, enabled=False) as advance:
        for _ in range(9):
            advance(1)
    assert capsys.readouterr().err == ""


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("rows", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_the_parts_of_a_line() -> None:
    assert clock(3599.6) == "1:00:00"
    assert share_done(1, 3) == "1/3 (33%)"
    assert times(10, 0, 5) == "0:00:10 elapsed"
