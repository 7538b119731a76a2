"""Rows held out of the training file: how many, by prompt, written as they are, and what callbacks see of them."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr_lightning.data import DemonstrationDataModule, PromptSet
from dpr_lightning.data.held_out import hold_out_by_default, write_rows
from dpr_lightning.data.prompt_identity import prompt_hash
from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError
from tests.tiny import tiny_tokenizer
from tests.workspace import write_rows as write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def data_module(train: Any, tokenizer: str, **options: Any) -> DemonstrationDataModule:
    return DemonstrationDataModule(train, tokenizer=tokenizer, batch_size=4, cache_dir=None, **options)


@pytest.mark.parametrize(
    ("prompts", "rows_each", "held_out"),
    [
        (2000, 1, 100),  # 5%
        (150, 1, 20),  # 20 rows
        (150, 3, 8),  # 20 rows' prompts, which is more than 5%: 7 would have 21, and 5% are 8
        (60, 4, 5),  # 20 rows' prompts
        (50, 1, 10),  # a fifth
        (5, 1, 1),
        (4, 9, 0),
        (1, 500, 0),
    ],
)
def test_how_many_prompts_are_held_out(prompts: int, rows_each: int, held_out: int) -> None:
    hashes = np.array([prompt_hash(str(number)) for number in range(prompts)] * rows_each)
    mask = hold_out_by_default(hashes, seed=0)
    assert len(set(hashes[mask])) == held_out
    assert mask.sum() == held_out * rows_each
    shuffled = np.random.default_rng(0).permutation(len(hashes))
    assert set(hashes[shuffled][hold_out_by_default(hashes[shuffled], 0)]) == set(hashes[mask])


def test_a_prompt_with_most_of_the_rows_is_learnt_from() -> None:
    names = ["common"] * 80 + [f"rare {number}" for number in range(20)]
    for seed in range(20):
        mask = hold_out_by_default(np.array([prompt_hash(name) for name in names]), seed)
        assert 1 <= mask.sum() <= 20
        assert not mask[:80].any()


def test_rows_are_held_out_by_default_and_said_in_one_line(
    tmp_path: Path, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = [{"question": f"{n % 40} + 1 =", "solution": "1" * (1 + n % 5), "Kommentar": "größer"} for n in range(80)]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    data = data_module(train, tokenizer, columns={"prompt": "question", "completion": "solution"})
    data.setup()
    assert data.train_data is not None
    assert data.validation_data is not None
    assert len(data.validation_data) == 16  # of 8 prompts, a fifth of 40
    assert not set(data.train_data.prompt_hashes) & set(data.validation_data.prompt_hashes)
    assert len(data.train_data) == 64
    lines = [line for line in caplog.messages if "held out" in line]
    assert lines == [
        f"{train}: 16 rows of 8 prompts are held out for validation, and 64 rows are learnt from. `data.validation` "
        "changes that: a file, a share such as 0.1, or null for none."
    ]
    everything = data_module(train, tokenizer, validation=None, columns=data.columns)
    everything.setup()
    assert everything.validation_data is None
    assert everything.held_out_rows() is None


def test_too_few_prompts_are_all_learnt_from(tmp_path: Path, tokenizer: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train = write_jsonl(tmp_path / "train.jsonl", [{"prompt": f"{n % 4}", "completion": "1"} for n in range(30)])
    data = data_module(train, tokenizer, held_out_file=str(tmp_path / "held.jsonl"))
    data.setup("fit")
    assert data.train_data is not None
    assert len(data.train_data) == 30
    assert data.validation_data is data.held_out_rows() is None
    assert not (tmp_path / "held.jsonl").exists()
    assert f"{train}: 4 different prompts are too few to hold some out" in caplog.text


@pytest.mark.parametrize("validation", ["auto", 0.25])
def test_held_out_rows_are_written_as_they_are(tmp_path: Path, tokenizer: str, validation: Any) -> None:
    columns = {"prompt": "Frage", "completion": "Antwort"}
    first = [{"Frage": f"{n} + 1 =", "Antwort": "1", "extra": {"a": [n, None]}} for n in range(50)]
    second = [{"Frage": f"{n} + 2 =", "Antwort": "2"} for n in range(50)]
    train: list[Any] = [
        {"path": write_jsonl(tmp_path / "a.jsonl", first), "weight": 2.5},
        write_jsonl(tmp_path / "b.jsonl", second),
    ]
    options: dict[str, Any] = {"validation": validation, "columns": columns}
    file = tmp_path / "run" / "held_out.jsonl"
    data = data_module(train, tokenizer, held_out_file=str(file), **options)
    data.setup("fit")
    assert data.held_out_rows() == (str(file), columns)
    saved = [json.loads(line) for line in file.read_text().splitlines()]
    held_out = data.validation_data
    assert held_out is not None
    assert len(saved) == len(held_out) == (20 if validation == "auto" else 25)
    assert all(row in first + second for row in saved)
    assert max(Counter(row["Frage"] for row in saved).values()) == 1  # whatever its weight
    prompts = PromptSet.load(str(file), data.tokenizer, columns=columns)
    assert set(prompts.prompt_hashes) == set(held_out.prompt_hashes)
    assert data.train_data is not None
    assert not set(prompts.prompt_hashes) & set(data.train_data.prompt_hashes)
    # Without a file the same rows come from the source, with their numbers there.
    without = data_module(train, tokenizer, **options)
    without.setup("fit")
    rows = without.held_out_rows()
    assert rows is not None
    selected = PromptSet.load(rows[0], data.tokenizer, columns=columns)
    assert selected.texts == prompts.texts
    indices = range(len(held_out))
    assert [selected.where(index) for index in indices] == [held_out.where(index) for index in indices]


def test_the_file_of_the_same_rows_stays_and_any_other_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = open_rows(write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "é"}]))
    file = tmp_path / "held_out.jsonl"
    write_rows(rows, file)
    before = file.stat().st_mtime_ns
    write_rows(rows, file)
    assert file.stat().st_mtime_ns == before
    assert not caplog.messages
    file.write_text("mine")
    write_rows(rows, file)
    assert (tmp_path / "held_out.jsonl.before_1").read_text() == "mine"
    assert file.read_text() == '{"prompt": "a"}\n{"prompt": "é"}\n'
    assert f"it is renamed to {file}.before_1" in caplog.text
    with pytest.raises(InputError, match=r"is a folder. Name a file, such as .*held_out\.jsonl"):
        write_rows(rows, tmp_path)


def test_rows_of_tables_and_of_parquet(tmp_path: Path, tokenizer: str) -> None:
    import datasets

    rows = [{"prompt": f"{n} + 1 =", "completion": str(n), "note": "" if n % 2 else "n"} for n in range(30)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        file = tmp_path / f"{name}.held.jsonl"
        data = data_module(str(tmp_path / name), tokenizer, held_out_file=str(file))
        data.setup("fit")
        saved = [json.loads(line) for line in file.read_text().splitlines()]
        expected = rows if name.endswith("parquet") else [{k: v for k, v in row.items() if v} for row in rows]
        assert len(saved) == 6
        assert all(row in expected for row in saved)
