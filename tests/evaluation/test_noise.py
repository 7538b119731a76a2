"""Mistakes that are put into demonstrations: how many, where, and what of them the oracle's rows name."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.noise import add_noise

ADDITION = [
    {"prompt": f"{a} + {b} =", "completion": f"{a}+{b}:1+2={a},0+1={b}>{a + b}\nAnswer: {a + b}", "answer": str(a + b)}
    for a in range(10, 20)
    for b in (11, 27)
]
SPELLING = [{"prompt": "owing:", "completion": "o w i n g\ng n i w o\nAnswer: gniwo", "answer": "gniwo"}] * 4


@pytest.mark.parametrize("kind", ["step", "answer", "swap"])
def test_a_share_of_the_rows_is_wrong_where_the_oracle_says(kind: Any) -> None:
    noisy = add_noise(ADDITION, 0.3, kind, seed=1)
    assert len(noisy.wrong) == 6
    for index, (before, after, masked) in enumerate(zip(ADDITION, noisy.rows, noisy.masked, strict=True)):
        spans = masked.get("loss_spans", [])
        assert {name: value for name, value in masked.items() if name != "loss_spans"} == after
        assert (after["completion"] != before["completion"]) == (index in noisy.wrong) == bool(spans)
        if kind != "swap":
            spelt = list(after["completion"])
            for span in spans:
                assert spelt[span["start"]] == span["text"]
                spelt[span["start"] : span["end"]] = before["completion"][span["start"] : span["end"]]
            assert "".join(spelt) == before["completion"]
            assert len(spans) == {"step": 3, "answer": 1}[kind] * (index in noisy.wrong)
    assert add_noise(ADDITION, 0.3, kind, seed=1) == noisy
    assert add_noise(ADDITION, 0.3, kind, seed=2).wrong != noisy.wrong


def test_the_answer_follows_a_wrong_step() -> None:
    for row in add_noise(ADDITION, 1.0, "step", 0).rows:
        steps, _, answer = row["completion"].partition("\nAnswer: ")
        assert steps.endswith(f">{answer}")
        assert answer != row["answer"]
    for row in add_noise(SPELLING, 1.0, "step", 0).rows:
        steps, _, answer = row["completion"].partition("\nAnswer: ")
        assert steps.splitlines() == ["o w i n g", " ".join(answer)]
        assert sum(x != y for x, y in zip(answer, "gniwo", strict=True)) == 1


@pytest.mark.parametrize(("rows", "right"), [(ADDITION, "10+11:1+2=10,0+1=11>21"), (SPELLING, "o w i n g\ng n i w o")])
def test_a_step_is_left_out_and_the_answer_stays(rows: list[dict[str, Any]], right: str) -> None:
    steps = {"1+2=10,", ",0+1=11", "o w i n g\n", "\ng n i w o"}
    noisy = add_noise(rows, 1.0, "left_out", 0)
    for before, after in zip(rows, noisy.rows, strict=True):
        assert after["completion"].endswith(f"\nAnswer: {before['answer']}")
    first = [add_noise(rows, 1.0, "left_out", seed).rows[0]["completion"] for seed in range(8)]
    assert {completion.partition("\nAnswer")[0] for completion in first} == {
        right.replace(part, "") for part in steps if part in right
    }


def test_a_systematic_mistake_is_the_same_in_every_row_that_has_the_fact() -> None:
    pairs = [(a, b) for a in range(1, 7) for b in (1, 2)] * 2
    rows = [{"prompt": "", "completion": f"{a}+{b}:{a}+{b}={a + b}>{a + b}\nAnswer: {a + b}"} for a, b in pairs]
    noisy = add_noise(rows, 0.3, "systematic", seed=1)
    assert 7 <= len(noisy.wrong) <= 8
    results: dict[tuple[int, int], set[str]] = {}
    for index, (pair, row) in enumerate(zip(pairs, noisy.rows, strict=True)):
        result, _, answer = row["completion"].partition("=")[2].partition(">")
        assert (result != str(sum(pair))) == (answer != f"{sum(pair)}\nAnswer: {sum(pair)}") == (index in noisy.wrong)
        results.setdefault(pair, set()).add(result + answer)
    assert {len(each) for each in results.values()} == {1}
    letters = add_noise(SPELLING, 0.5, "systematic", seed=1)
    assert len({row["completion"] for row in letters.rows}) == 1
    assert letters.wrong == [0, 1, 2, 3]


def test_what_cannot_be_is_refused() -> None:
    for share, kind in ((1.5, "step"), (-0.1, "step"), (0.5, "typo")):
        unknown: Any = kind
        with pytest.raises(InputError, match="`noise` is"):
            add_noise(ADDITION, share, unknown, 0)
    with pytest.raises(InputError, match="no step that can be left out"):
        add_noise([{"prompt": "a", "completion": "b\nAnswer: c"}], 1.0, "left_out", 0)
    with pytest.raises(InputError, match="last line `Answer: X`"):
        add_noise([{"prompt": "a", "completion": "b"}], 1.0, "answer", 0)


def test_a_noisy_toy_has_the_rows_of_its_oracles(tmp_path: Path) -> None:
    sizes = ["--prompts", "4", "--development", "4", "--test", "4", "--hidden_size", "32", "--layers", "1"]
    arguments = ["toy", "--output", str(tmp_path), "--demonstrations", "20", "--noise", "0.25", *sizes]
    assert main(arguments) == 0
    rows = {
        name: [json.loads(line) for line in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("demonstrations", "oracle_masked", "oracle_dropped")
    }
    right = [row for row in rows["demonstrations"] if row["completion"].endswith(f"Answer: {row['answer']}")]
    assert len(rows["demonstrations"]) == 20
    assert right == rows["oracle_dropped"]
    assert len(right) == 15
    assert sum("loss_spans" in row for row in rows["oracle_masked"]) == 5
