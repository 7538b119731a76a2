"""Counts of listed rows and characters that are mistakes."""

import json
from pathlib import Path

from benchmarks.listed_mistakes import count, read_listed


def test_rows_and_characters_are_counted_against_the_oracle() -> None:
    oracle = [{}, {"loss_spans": [{"start": 2, "end": 5}]}, {"loss_spans": [{"start": 0, "end": 1}]}]
    listed = [
        {"row": 2, "loss_spans": [{"start": 4, "end": 6}]},
        {"row": 1, "loss_spans": [{"start": 0, "end": 3}]},
        {"row": 3, "loss_spans": []},
    ]
    assert count(oracle, listed, 1) == (1, 2, 1, 4)
    assert count(oracle, listed, 3) == (2, 5, 1, 4)


def test_the_rows_of_an_arm_are_read_as_those_of_an_audit(tmp_path: Path) -> None:
    arm, audit = tmp_path / "cleaned.json", tmp_path / "train.listed.jsonl"
    arm.write_text(json.dumps({"listed": 1, "rows": [{"number": 2, "spans": [[3, 5]]}], "operations": 1.0}))
    audit.write_text(json.dumps({"row": 2, "loss_spans": [{"start": 3, "end": 5}]}) + "\n")
    assert read_listed(arm) == read_listed(audit)
