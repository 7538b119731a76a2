"""What counts as equal, which difference is reported, and which records are refused."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.gates import record
from tests.gates.record import judge, metrics, numbers, read, weights, write

RECORDED: dict[str, Any] = {
    "train/loss": [[0, 1.5], [1, 0.1 + 0.2]],
    "train/none": math.nan,
    "tokens": 7,
    "weights: sha256": "ab",
    "weights: norm": 2.0,
}


def test_a_record_keeps_every_bit(tmp_path: Path) -> None:
    write(tmp_path / "record.json", {"gate": RECORDED})
    assert judge(read(tmp_path / "record.json")["gate"], RECORDED) == (True, "equal")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train/loss": [[0, 1.5], [1, 0.3]]}, "train/loss[1][1] was 0.30000000000000004 and is 0.3"),
        ({"train/loss": [[0, 1.5], [2, 0.1 + 0.2]]}, "train/loss[1][0] was 1 and is 2"),
        ({"train/loss": [[0, 1.5]]}, "length of train/loss was 2 and is 1"),
        ({"tokens": 7.0}, "tokens was 7 and is 7.0"),
        ({"weights: sha256": "cd"}, "weights: sha256 was 'ab' and is 'cd'"),
        ({"more": 1}, "more was 'missing' and is 1"),
    ],
)
def test_a_difference_is_reported(change: dict[str, Any], expected: str) -> None:
    verdict = judge(RECORDED, RECORDED | change)
    assert not verdict.passed
    assert verdict.line.startswith("differs: 1 values, " + expected)


def test_a_missing_key_differs_and_a_renamed_one_is_reported() -> None:
    fewer = {key: value for key, value in RECORDED.items() if key != "train/loss"}
    assert "train/loss was [[0, 1.5]" in judge(RECORDED, fewer).line
    assert not judge(RECORDED, fewer).passed
    assert judge(RECORDED, fewer | {"loss": RECORDED["train/loss"]}) == (True, "equal; train/loss is now loss")
    assert not judge(RECORDED, fewer | {"loss": [[0, 1.5], [1, 0.3]]}).passed


def test_a_bound_accepts_floats_close_by_and_compares_no_hashes() -> None:
    close = RECORDED | {"weights: sha256": "cd", "weights: norm": 2.0 + 1e-7}
    assert not judge(RECORDED, close).passed
    assert judge(RECORDED, close).line.startswith("differs: 2 values, weights: norm was 2.0 and is 2.0000001")
    verdict = judge(RECORDED, close, bound=1e-6)
    assert verdict.passed
    assert verdict.line.startswith(
        "equal up to 1e-06: 1 values, weights: norm was 2.0 and is 2.0000001; floats by at most"
    )
    for change in ({"weights: norm": 2.0 + 1e-5}, {"tokens": 8}, {"train/none": 0.0}, {"train/loss": [[0, 1.5]]}):
        assert not judge(RECORDED, close | change, bound=1e-6).passed
    assert judge(RECORDED, RECORDED, bound=1e-6).line == "equal"


def test_a_record_of_another_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write(file, {})
    here = record.environment()
    monkeypatch.setattr(record, "environment", lambda: here | {"torch": "0.1"})
    with pytest.raises(ValueError, match=r"torch was .*, is 0\.1"):
        read(file)


def test_the_hash_covers_names_and_bits(tmp_path: Path) -> None:
    hashes = set()
    for name, value in (("a", 1.0), ("b", 1.0), ("a", 1.0 + 2**-23)):
        save_file({name: torch.tensor([value, 2.0]), "c": torch.ones(1)}, tmp_path / "model.safetensors")
        hashes.add(weights(tmp_path)["sha256"])
    assert len(hashes) == 3
    assert weights(tmp_path)["c norm"] == 1.0


def test_times_are_left_out(tmp_path: Path) -> None:
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["epoch", "step", "train/loss", "train/seconds"], [0, 3, 0.25, 9.0], [0, 4, "", 9.0]])
    assert metrics(tmp_path / "metrics.csv") == {"train/loss": [(3, 0.25)]}
    content = {
        "arms": {"sft": {"sampled": 0.5, "seconds": 3.0}},
        "settings": {"beta": 1.0},
        "texts": ["a"],
        "n": [1, 2],
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert numbers(tmp_path / "result.json") == {"arms/sft/sampled": 0.5, "n/0": 1, "n/1": 2}
