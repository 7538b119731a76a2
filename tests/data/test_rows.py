"""Rows of every format, and the message for each way in which a file can be wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "ü", "completion": "雪"}]


def values(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_rows(path)]


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.json").write_text(lines, encoding="utf-8")
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    (tmp_path / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (tmp_path / "no_newline.jsonl").write_text(lines.rstrip("\n"), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "array.json", "mark.jsonl", "no_newline.jsonl", "a.parquet"):
        assert values(tmp_path / name) == ROWS, name


def test_a_saved_data_set_is_read_from_its_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    source = open_rows(str(tmp_path / "saved"))
    assert [dict(row.values) for row in source] == ROWS
    assert source.count() == 2
    assert source.fingerprint() == open_rows(str(tmp_path / "saved")).fingerprint()


def test_a_hub_name_may_carry_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    requested: list[Any] = []

    def load(name: str, configuration: str | None, split: str) -> Any:
        requested.append((name, configuration, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("owner/name", "owner/name:test", "owner/name:main:test"):
        assert len(list(open_rows(source))) == 2
    assert requested == [("owner/name", None, "train"), ("owner/name", None, "test"), ("owner/name", "main", "test")]


def test_a_misspelt_file_is_refused_before_the_hub_is_queried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "data").mkdir()
    for name in ("mine.jsonl", "data/train.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS[0]) + "\n")
    monkeypatch.chdir(tmp_path)
    requested: list[str] = []

    def load(name: str, configuration: str | None, split: str) -> Any:
        requested.append(name)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source, message in {
        "mine.jsnl": r"no file mine\.jsnl\. Did you mean mine\.jsonl\?.* owner/name:split",
        "gsm8k-typo": r"holds mine\.jsonl\. A data set of the hub is written owner/name",
        "mine:train": r"no file mine:train\. Did you mean mine\.jsonl",
        "data/train.jsnl": r"Did you mean data/train\.jsonl\?",
    }.items():
        with pytest.raises(InputError, match=message):
            open_rows(source)
    assert not requested
    for source in ("data/gsm8k", "data/train.jsnl:train", "owner/mine.jsnl"):
        assert len(list(open_rows(source))) == 2
    assert requested == ["data/gsm8k", "data/train.jsnl", "owner/mine.jsnl"]


def test_an_unknown_data_set_is_the_users_error() -> None:
    with pytest.raises(InputError, match="owner/nothing"):
        open_rows("owner/nothing")


def test_numbers_are_lines_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n\n  \n{"prompt": "b"}\n')
    assert [(row.number, row.location) for row in open_rows(path)] == [(1, f"{path}:1"), (4, f"{path}:4")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\n \n", "only blank lines"),
        (b'{"prompt": "a"}\n{"prompt": "b", oops}\n', r"a\.jsonl:2: malformed JSON at column 17.*oops"),
        (b'{"prompt": "a"}\n{"prompt": "b"', r"a\.jsonl:2: malformed JSON.*cut short"),
        (b'{"prompt": "a"}\n["b"]\n', r"a\.jsonl:2: a row must be a JSON object.*list"),
        (b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', r"a\.jsonl:2: byte 16 \(0xe9\) is not UTF-8"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "UTF-16"),
        (b'{"prompt": ' + b"[" * 200_000 + b"\n", r"a\.jsonl:1: "),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        list(open_rows(path))
    assert len(str(raised.value)) < 600


def test_a_missing_file_brings_the_nearest_names(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"Did you mean .*/train\.jsonl"):
        open_rows(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match=r"holds train\.jsonl"):
        open_rows(tmp_path / "zzzzzzzzzz.parquet")
    with pytest.raises(InputError, match="does not exist"):
        open_rows(tmp_path / "nowhere" / "train.jsonl")
    (tmp_path / "table.txt").write_text("a,b\n")
    with pytest.raises(InputError, match=r"'\.txt'"):
        open_rows(tmp_path / "table.txt")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(InputError, match="no readable Parquet"):
        open_rows(path)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(InputError, match="holds no rows"):
        open_rows(path)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"prompt": "a"}\n')
    second.write_text('{"prompt": "a"}\n')
    assert open_rows(first).fingerprint() == open_rows(second).fingerprint()
    second.write_text('{"prompt": "b"}\n')
    assert open_rows(first).fingerprint() != open_rows(second).fingerprint()
