"""Training rows without flagged ones: the rest is untouched, and flags that do not fit the files are refused."""

import json
from pathlib import Path

import pytest

from dpr_lightning.data.cleaning import FlaggedRow, read_flagged, write_cleaned
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError
from tests.workspace import write_rows

ROWS = [{"frage": f"{n}+1=", "antwort": f"{n + 1} ü", "id": n, "tags": ["a", {"b": None}]} for n in range(6)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("mine.jsonl"), ROWS)


def flag(number: int, values: dict[str, object] | None = None, file: str = "mine.jsonl") -> FlaggedRow:
    return FlaggedRow(file, number, row_hash(values or ROWS[number - 1]), f"flagged.jsonl:{number}")


def test_the_other_rows_have_their_columns_and_order() -> None:
    cleaned = write_cleaned(open_rows("mine.jsonl"), [flag(2), flag(5)], Path("cleaned.jsonl"))
    assert cleaned == (4, 2, 0)
    lines = Path("cleaned.jsonl").read_text("utf-8").splitlines()
    assert lines == [json.dumps(ROWS[index], ensure_ascii=False) for index in (0, 2, 3, 5)]


def test_files_are_joined_and_recognised_however_they_are_spelt(tmp_path: Path) -> None:
    Path("more.csv").write_text("id,frage,antwort\n1,x,\n2,y,z\n")
    flagged = [
        flag(1, file=str(tmp_path / "mine.jsonl")),
        flag(3, {"id": "2", "frage": "y", "antwort": "z"}, "./more.csv"),
    ]
    assert write_cleaned(open_rows(["mine.jsonl", "more.csv"]), flagged, Path("cleaned.jsonl")) == (6, 2, 0)
    values = [json.loads(line) for line in Path("cleaned.jsonl").read_text("utf-8").splitlines()]
    assert values == [*ROWS[1:], {"id": "1", "frage": "x"}]


def test_exact_copies_are_dropped_too_and_counted() -> None:
    write_rows(Path("mine.jsonl"), [*ROWS, dict(reversed(ROWS[0].items())), ROWS[0]])
    assert write_cleaned(open_rows("mine.jsonl"), [flag(1)], Path("cleaned.jsonl")) == (5, 3, 2)
    Path("cleaned.jsonl").unlink()
    both = [flag(1), flag(7, ROWS[0])]
    assert write_cleaned(open_rows("mine.jsonl"), both, Path("cleaned.jsonl")) == (5, 3, 1)


def test_rows_of_the_file_of_held_out_rows_are_recognised_by_their_content() -> None:
    flagged = [flag(1, ROWS[3], file="runs/mine/held_out.jsonl")]
    assert write_cleaned(open_rows("mine.jsonl"), flagged, Path("cleaned.jsonl")) == (5, 1, 0)
    assert '"id": 3' not in Path("cleaned.jsonl").read_text()


@pytest.mark.parametrize(
    ("flagged", "says"),
    [
        ([flag(2, ROWS[4])], r"mine\.jsonl:2 has other content than the row that was flagged: the file has changed"),
        ([flag(9, ROWS[4])], r"flagged\.jsonl:9: mine\.jsonl has no row 9 now: the file has changed"),
        (
            [flag(1), flag(1, {"a": 1}, "held_out.jsonl")],
            r"held_out\.jsonl:1 is not among the training rows, mine\.jsonl \(1 flagged row of 2\)",
        ),
        ([flag(number) for number in range(1, 7)], "All rows of mine.jsonl are flagged"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flagged: list[FlaggedRow], says: str) -> None:
    with pytest.raises(InputError, match=says):
        write_cleaned(open_rows("mine.jsonl"), flagged, Path("cleaned.jsonl"))
    assert sorted(path.name for path in Path().iterdir()) == ["mine.jsonl"]


def test_an_export_is_read_and_each_row_of_it_once() -> None:
    line = {"file": "mine.jsonl", "row": 3, "hash": "ab", "token": "x", "reward": -1.5, "action": "drop"}
    write_rows(Path("flagged.jsonl"), [line, line])
    assert read_flagged("flagged.jsonl") == [FlaggedRow("mine.jsonl", 3, "ab", "flagged.jsonl:2")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hash": None}, r"flagged\.jsonl:1: 'hash' is None\. .* export it again"),
        ({"row": "3"}, "'row' is '3'"),
        ({"action": "keep"}, "`action` is 'keep', and a row can be dropped alone: 'drop'"),
    ],
)
def test_another_file_is_no_export(change: dict[str, object], says: str) -> None:
    write_rows(Path("flagged.jsonl"), [{"file": "mine.jsonl", "row": 3, "hash": "ab", "action": "drop", **change}])
    with pytest.raises(InputError, match=says):
        read_flagged("flagged.jsonl")
