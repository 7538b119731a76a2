"""SCAN's files, and splits of them."""

from pathlib import Path

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.scan import read_scan, split_rows
from dpr_lightning.evaluation.verifiers import answer

LINES = ["IN: jump OUT: I_JUMP", "IN: turn left twice OUT: I_TURN_LEFT I_TURN_LEFT", "IN: jump OUT: I_JUMP"]


def test_lines_become_rows_each_prompt_once(tmp_path: Path) -> None:
    path = tmp_path / "tasks.txt"
    path.write_text("\n".join(LINES) + "\n")
    rows = read_scan(path)
    assert [row["prompt"] for row in rows] == ["jump =", "turn left twice ="]
    assert rows[1]["completion"] == "Answer: I_TURN_LEFT I_TURN_LEFT"
    assert answer(rows[1]["prompt"], rows[1]["completion"], rows[1]) == 1.0
    assert answer(rows[1]["prompt"], "Answer: I_TURN_LEFT", rows[1]) == 0.0


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tasks.txt"
    path.write_text("IN: jump OUT: I_JUMP\njump I_JUMP\n")
    with pytest.raises(InputError, match=r"tasks.txt:2 is 'jump I_JUMP'"):
        read_scan(path)
    with pytest.raises(InputError, match="no file"):
        read_scan(tmp_path / "nope.txt")


def test_splits_are_disjoint_and_the_seeds() -> None:
    rows = [{"prompt": str(number)} for number in range(30)]
    sizes = {"test": 5, "development": 3, "demonstrations": 10}
    splits = split_rows(rows, sizes, seed=1)
    assert {name: len(rows) for name, rows in splits.items()} == sizes
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(set(prompts)) == 18
    assert splits == split_rows(rows, sizes, seed=1) != split_rows(rows, sizes, seed=2)
    with pytest.raises(InputError, match="take 40 rows, and there are 30"):
        split_rows(rows, {"test": 40}, seed=0)
