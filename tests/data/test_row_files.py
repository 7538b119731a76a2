"""Compressed files, tables, patterns, folders and lists of files with weights."""

import bz2
import gzip
import json
import logging
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dpr_lightning.cli.main import main
from dpr_lightning.data import DemonstrationDataModule, PromptSet
from dpr_lightning.data.rows import RowSource, local_files, open_rows
from dpr_lightning.errors import InputError
from dpr_lightning.lightning_cli.resume import identity
from dpr_lightning.policies import create_toy_policy
from tests.tiny import tiny_tokenizer
from tests.workspace import write_sft_config

ROWS = [{"prompt": f"{number} + 1 =", "completion": f"{number + 1}"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}


def values(source: RowSource) -> list[dict[str, Any]]:
    return [dict(row.values) for row in source]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_read_as_its_content(suffix: str, tmp_path: Path) -> None:
    contents = {".jsonl": LINES, ".json": json.dumps(ROWS).encode(), ".csv": b"prompt,completion\n1,2\n"}
    for inner, content in contents.items():
        plain, packed = tmp_path / f"a{inner}", tmp_path / f"a{inner}{suffix}"
        plain.write_bytes(content)
        packed.write_bytes(COMPRESS[suffix](content))
        assert values(open_rows(packed)) == values(open_rows(plain))
        assert open_rows(packed).count() == open_rows(plain).count()
        assert open_rows(packed).fingerprint() != open_rows(plain).fingerprint()
    # The line of an error is that of the content.
    packed = tmp_path / f"b.jsonl{suffix}"
    packed.write_bytes(COMPRESS[suffix](LINES + b"oops\n"))
    with pytest.raises(InputError, match=rf"b\.jsonl{suffix}:6: malformed JSON"):
        list(open_rows(packed))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_that_is_cut_is_named_with_the_last_line(suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    content = b"".join(b'{"prompt": "%s"}\n' % random.bytes(50).hex().encode() for _ in range(9000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content)[:-2000])
    rows: list[int] = []
    with pytest.raises(InputError, match=r"damaged after line \d+ ") as raised:
        rows.extend(row.number for row in open_rows(path))
    assert 0 < rows[-1] < 9000
    assert f"after line {rows[-1]} " in str(raised.value)
    assert open_rows(path).count() >= 0


def test_content_decides_and_a_wrong_name_is_mentioned(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.csv").write_bytes(LINES)
    (tmp_path / "c.jsonl").write_bytes(json.dumps(ROWS).encode())
    (tmp_path / "d.txt").write_bytes(LINES)
    (tmp_path / "e.gz").write_bytes(gzip.compress(LINES))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.jsonl")
    for name in ("a.jsonl", "b.csv", "c.jsonl", "d.txt", "e.gz", "f.jsonl"):
        source = open_rows(tmp_path / name)
        assert values(source) == ROWS, name
        assert len(source.notes) == 1, name
        assert name in source.notes[0]
    for name in ("x.txt", "y.csv.zip", "z.jsonl"):
        content = {"x": b"IN: walk OUT: WALK\n", "y": b"PK\x03\x04....", "z": b"a" * 257 + b"ustar"}[name[0]]
        (tmp_path / name).write_bytes(gzip.compress(content) if name[0] == "z" else content)
        with pytest.raises(InputError, match=r"Convert it|zip archive|tar archive"):
            open_rows(tmp_path / name)


def test_a_table_is_text_and_an_empty_cell_a_missing_key(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff,question,answer,note\r\n0,"a, ""b""\r\nc",007,\r\n\r\n1,ü,x,y\r\n'.encode())
    rows = list(open_rows(path))
    assert [dict(row.values) for row in rows] == [
        {"question": 'a, "b"\r\nc', "answer": "007"},
        {"question": "ü", "answer": "x", "note": "y"},
    ]
    assert [row.number for row in rows] == [2, 5]
    for name, delimiter in (("a.tsv", "\t"), ("b.csv", ";"), ("b.tsv", "\t")):
        (tmp_path / name).write_text(f"question{delimiter}answer\n1, 2{delimiter}3\n")
        assert values(open_rows(tmp_path / name)) == [{"question": "1, 2", "answer": "3"}]
    long = tmp_path / "long.csv"
    long.write_text(f"question,answer\n{'x' * 200_000},y\n")
    assert len(values(open_rows(long))[0]["question"]) == 200_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"prompt,completion\n", "holds no rows"),
        (b"prompt,completion\na\n", r"a\.csv:2 has 1 cell and the table 2 columns"),
        (b"prompt,completion\na,b\na,b, c\n", r"a\.csv:3 has 3 cells"),
        (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
        (b"prompt,\na,b\n", "column 2 has no name"),
        (b'prompt,completion\na,b\n"a,b\nc,d\n', r"a\.csv:3: .*cannot be read"),
        (b"prompt,completion\na,caf\xe9\n", r"a\.csv:2: byte 6 \(0xe9\) is not UTF-8"),
        (b"prompt,completion\na,\0\n", r"a\.csv:2: a NUL byte"),
        ("prompt,completion\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_bad_table_is_named_with_its_line(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(open_rows(tmp_path / "a.csv"))


def test_patterns_and_folders_are_read_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "shards" / "b.jsonl", ROWS[2:4])
    (tmp_path / "shards" / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() + b"\n"))
    (tmp_path / "shards" / "more").mkdir()
    (tmp_path / "shards" / "more" / "c.csv").write_text("prompt,completion\n4 + 1 =,5\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[1:2]), tmp_path / "shards" / "a.parquet")
    write(tmp_path / "shards" / ".hidden.jsonl", [{"prompt": "no", "completion": "no"}])
    write(tmp_path / "shards" / ".cache" / "d.jsonl", [{"prompt": "no", "completion": "no"}])
    (tmp_path / "shards" / "README.md").write_text("# Rows\n")
    folder = open_rows(str(tmp_path / "shards"))
    assert values(folder) == [ROWS[0], ROWS[1], *ROWS[2:4], ROWS[4]]
    assert [Path(row.file).name for row in folder] == ["a.jsonl.gz", "a.parquet", "b.jsonl", "b.jsonl", "c.csv"]
    assert folder.notes == ("files of other kinds in the folder are not read: README.md",)
    pattern = open_rows(str(tmp_path / "shards" / "*.jsonl*"))
    assert values(pattern) == [ROWS[0], *ROWS[2:4]]
    assert values(open_rows(str(tmp_path / "**" / "*.csv"))) == [ROWS[4]]
    assert [file.name for file in local_files(str(tmp_path / "shards" / "*.parquet"))] == ["a.parquet"]
    before = pattern.fingerprint()
    write(tmp_path / "shards" / "b.jsonl", ROWS[2:5])
    assert open_rows(str(tmp_path / "shards" / "*.jsonl*")).fingerprint() != before
    with pytest.raises(InputError, match=r"No file matches .*\*\.tsv\. .* holds a\.jsonl\.gz, a\.parquet, b\.jsonl"):
        open_rows(str(tmp_path / "shards" / "*.tsv"))


@pytest.mark.parametrize("names", [("train.jsonl", "test.jsonl"), ("data/train-0.jsonl", "data/validation-0.jsonl")])
def test_splits_are_not_mixed_and_the_advice_reads_one(names: tuple[str, str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write(tmp_path / name, [ROWS[number]])
    with pytest.raises(InputError, match="several splits") as raised:
        open_rows(str(tmp_path))
    patterns = str(raised.value).rpartition("example ")[2].rstrip(".").split(" or ")
    assert sorted(values(open_rows(pattern))[0]["prompt"] for pattern in patterns) == ["0 + 1 =", "1 + 1 ="]


def test_a_limit_of_a_file_in_a_list_counts_its_rows_before_the_weight(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    for name, path in zip("ab", paths, strict=True):
        Path(path).write_text("".join(f'{{"prompt": "{name}{row}", "completion": "c"}}\n' for row in range(5)))

    def prompts(source: Any) -> list[str]:
        return [row.values["prompt"] for row in open_rows(source)]

    listed: list[Any] = [{"path": paths[0], "limit": 2, "weight": 2}, {"path": paths[1], "limit": 9}]
    assert prompts(listed) == ["a0", "a0", "a1", "a1", "b0", "b1", "b2", "b3", "b4"]
    assert prompts([{"path": str(tmp_path), "limit": 6}]) == ["a0", "a1", "a2", "a3", "a4", "b0"]
    assert open_rows(listed).fingerprint() != open_rows([{**listed[0], "limit": 3}, listed[1]]).fingerprint()
    with pytest.raises(InputError, match="`limit` must be at least 1"):
        open_rows([{"path": paths[0], "limit": 0}])


def test_weights_count_rows_more_or_less_often(tmp_path: Path) -> None:
    rows = [{"prompt": str(number), "completion": "x"} for number in range(3000)]
    first, second = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[:4])
    third = write(tmp_path / "c.jsonl", rows[:10])
    source = open_rows([second, {"path": first, "weight": 0.5}, {"path": third, "weight": 2.3}])
    counts = Counter((Path(row.file).name, row.number) for row in source)
    assert sum(count for (file, _), count in counts.items() if file == "a.jsonl") == 1500
    assert sum(count for (file, _), count in counts.items() if file == "b.jsonl") == 4
    assert Counter(count for (file, _), count in counts.items() if file == "c.jsonl") == {2: 7, 3: 3}
    assert [row.number for row in source] == [row.number for row in source]
    assert source.fingerprint() != open_rows([second, first, third]).fingerprint()
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="weight of"):
            open_rows([{"path": first, "weight": bad}])
    with pytest.raises(InputError, match="leaves no row"):
        list(open_rows([{"path": second, "weight": 0.1}]))
    with pytest.raises(InputError, match="named 2 times"):
        open_rows([first, str(tmp_path / "?.jsonl")])
    with pytest.raises(InputError, match="is no list of files"):
        open_rows("[{path: a.jsonl, wieght: 2}]")


def test_rows_of_many_files_are_told_apart(tmp_path: Path) -> None:
    """The file and number of every row, also from the cache and of validation rows held out by share."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for number in range(3):
        write(
            tmp_path / "shards" / f"{number}.jsonl",
            [{"prompt": f"{number}{row}", "completion": "1"} for row in range(6)],
        )
    pattern = str(tmp_path / "shards" / "*.jsonl")
    options: dict[str, Any] = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        data = DemonstrationDataModule([pattern], validation=0.3, **options)
        data.prepare_data()
        data.setup()
        assert data.train_data is not None
        assert data.validation_data is not None
        indices = [
            dataset.where(row) for dataset in (data.train_data, data.validation_data) for row in range(len(dataset))
        ]
        assert sorted(indices) == [f"{tmp_path}/shards/{file}.jsonl:{row}" for file in range(3) for row in range(1, 7)]
        held_out = data.held_out_rows()
        assert held_out is not None
        prompts = PromptSet.load(held_out[0], tokenizer)
        assert len(prompts) == len(data.validation_data)
        assert [prompts.where(row) for row in range(len(prompts))] == [
            data.validation_data.where(row) for row in range(len(prompts))
        ]
    assert PromptSet.load([pattern], tokenizer).select([7]).where(0) == f"{tmp_path}/shards/1.jsonl:2"


def test_a_run_goes_on_only_with_the_files_that_a_pattern_matched(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    config: dict[str, Any] = {"data": {"init_args": {"train": [{"path": str(tmp_path / "*.jsonl"), "weight": 2.0}]}}}
    before = identity(config)
    assert identity(config) == before
    write(tmp_path / "b.jsonl", ROWS)
    assert identity(config) != before


def test_a_run_takes_a_list_with_weights_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As docs/data.md has it; the names are not taken for configs to load, and what is unusual is logged once."""
    policy = create_toy_policy(tmp_path / "policy", ["0123456789 +=#"], hidden_size=16, layers=1, heads=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "other.csv").write_text("question,answer,label\n7 + 1 =,8,1\n8 + 1 =,9,0\n")
    config = write_sft_config(tmp_path, {"source": str(policy)}, str(tmp_path / "other.csv"))
    listed = f"[{{path: {tmp_path}/mine/*.jsonl.gz, weight: 2}}, {tmp_path}/other.csv]"
    with caplog.at_level(logging.INFO):
        assert main(["fit", "--config", config, "--data.train", listed]) == 0
    output = caplog.text + capsys.readouterr().err
    assert "12 rows, 12 kept" in output
    assert "read as prompt and completion (question, answer) (2 rows, first" in output
    assert output.count("the column 'label' is not used (2 rows, first") == 1
