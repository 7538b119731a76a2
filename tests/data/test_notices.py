"""A command that reads a file several times logs a warning about it once."""

from pathlib import Path

import pytest

from dpr_lightning.data.notices import log_lines


def test_a_warning_about_a_file_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    log_lines("mine.jsonl", ["read as Alpaca (3 rows).", "the column 'score' is not used (1 row)."])
    log_lines("mine.jsonl", ["read as Alpaca (3 rows).", "read as Alpaca (2 rows)."])
    log_lines("other.jsonl", ["read as Alpaca (3 rows)."])
    assert caplog.messages == [
        "mine.jsonl: read as Alpaca (3 rows).",
        "mine.jsonl: the column 'score' is not used (1 row).",
        "mine.jsonl: read as Alpaca (2 rows).",
        "other.jsonl: read as Alpaca (3 rows).",
    ]
