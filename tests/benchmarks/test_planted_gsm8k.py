"""Mistakes in steps of GSM8K: carried on consistently, and only where arithmetic was right."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.planted_gsm8k import carried_on, computed, is_wrong, plant

ANSWER = "He sold 48/2 = <<48/2=24>>24 clips.\nSo 48+24 = $<<48+24=72>>72 in all.\n#### 72"


def test_a_wrong_result_is_carried_on_by_later_steps_and_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    monkeypatch.setattr(generator, "choice", lambda values: values[0])
    wrong = carried_on(ANSWER, generator)
    assert wrong == "He sold 48/2 = <<48/2=14>>14 clips.\nSo 48+14 = $<<48+14=62>>62 in all.\n#### 62"
    assert is_wrong(wrong)
    assert not is_wrong(ANSWER)
    assert carried_on(wrong, generator) is None
    assert carried_on("No step.\n#### 3", generator) is None


def test_steps_are_computed_where_they_are_arithmetic() -> None:
    assert computed("(2+3)*4/8") == 2.5
    assert computed("2+") is None
    assert computed("1/0") is None
    assert is_wrong("<<10/3=3.34>>")
    assert not is_wrong("<<10/3=3.333>>")


def test_the_planted_rows_are_those_that_changed(tmp_path: Path) -> None:
    rows = [{"question": str(number), "answer": f"{ANSWER}\nRow {number}."} for number in range(40)]
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plant(source, tmp_path / "planted.jsonl", rows=40, share=0.2, seed=1)
    planted = [json.loads(line) for line in (tmp_path / "planted.jsonl").read_text().splitlines()]
    mistakes = [json.loads(line) for line in (tmp_path / "planted.mistakes.jsonl").read_text().splitlines()]
    changed = [number for number, (old, new) in enumerate(zip(rows, planted, strict=True), start=1) if old != new]
    assert changed == [mistake["row"] for mistake in mistakes]
    assert sorted(mistake["kind"] for mistake in mistakes) == sorted(2 * ["carried on", "left_out", "number", "swap"])
