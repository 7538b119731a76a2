"""Training rows without flagged ones: the rest is untouched, and flags that do not fit the files are refused."""

import json
import math
from pathlib import Path

import pytest

from dpr_lightning.data.cleaning import FlaggedRow, change_of, read_flagged, write_cleaned
from dpr_lightning.data.loss_spans import LossSpan
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError
from tests.workspace import write_rows

ROWS = [{"frage": f"{n}+1=", "antwort": f"{n + 1} ü", "id": n, "tags": ["a", {"b": None}]} for n in range(6)]

DROP = change_of("drop", [], None, 1.0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("mine.jsonl"), ROWS)


def flag(number: int, values: dict[str, object] | None = None, file: str = "mine.jsonl") -> FlaggedRow:
    return FlaggedRow(file, number, row_hash(values or ROWS[number - 1]), f"flagged.jsonl:{number}")


def test_the_other_rows_have_their_columns_and_order() -> None:
    cleaned = write_cleaned(open_rows("mine.jsonl"), [flag(2), flag(5)], Path("cleaned.jsonl"), DROP)
    assert cleaned == (4, 2, 0, 0, 0)
    lines = Path("cleaned.jsonl").read_text("utf-8").splitlines()
    assert lines == [json.dumps(ROWS[index], ensure_ascii=False) for index in (0, 2, 3, 5)]


def test_files_are_joined_and_recognised_however_they_are_spelt(tmp_path: Path) -> None:
    Path("more.csv").write_text("id,frage,antwort\n1,x,\n2,y,z\n")
    flagged = [
        flag(1, file=str(tmp_path / "mine.jsonl")),
        flag(3, {"id": "2", "frage": "y", "antwort": "z"}, "./more.csv"),
    ]
    assert write_cleaned(open_rows(["mine.jsonl", "more.csv"]), flagged, Path("cleaned.jsonl"), DROP) == (6, 2, 0, 0, 0)
    values = [json.loads(line) for line in Path("cleaned.jsonl").read_text("utf-8").splitlines()]
    assert values == [*ROWS[1:], {"id": "1", "frage": "x"}]


def test_exact_copies_are_dropped_too_and_counted() -> None:
    write_rows(Path("mine.jsonl"), [*ROWS, dict(reversed(ROWS[0].items())), ROWS[0]])
    assert write_cleaned(open_rows("mine.jsonl"), [flag(1)], Path("cleaned.jsonl"), DROP) == (5, 3, 0, 2, 0)
    Path("cleaned.jsonl").unlink()
    both = [flag(1), flag(7, ROWS[0])]
    assert write_cleaned(open_rows("mine.jsonl"), both, Path("cleaned.jsonl"), DROP) == (5, 3, 0, 1, 0)


def test_rows_of_the_file_of_held_out_rows_are_recognised_by_their_content() -> None:
    flagged = [flag(1, ROWS[3], file="runs/mine/held_out.jsonl")]
    assert write_cleaned(open_rows("mine.jsonl"), flagged, Path("cleaned.jsonl"), DROP) == (5, 1, 0, 0, 0)
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
        write_cleaned(open_rows("mine.jsonl"), flagged, Path("cleaned.jsonl"), DROP)
    assert sorted(path.name for path in Path().iterdir()) == ["mine.jsonl"]


def test_an_export_is_read_and_each_row_of_it_once() -> None:
    line = {"file": "mine.jsonl", "row": 3, "hash": "ab", "token": "x", "reward": -1.5}
    write_rows(Path("flagged.jsonl"), [line, line])
    assert read_flagged("flagged.jsonl") == [FlaggedRow("mine.jsonl", 3, "ab", "flagged.jsonl:2")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hash": None}, r"flagged\.jsonl:1: 'hash' is None\. .* export it again"),
        ({"row": "3"}, "'row' is '3'"),
        ({"loss_spans": [{"start": 3, "end": 1}]}, r"flagged\.jsonl:1 has characters 3 to 1"),
    ],
)
def test_another_file_is_no_export(change: dict[str, object], says: str) -> None:
    write_rows(Path("flagged.jsonl"), [{"file": "mine.jsonl", "row": 3, "hash": "ab", **change}])
    with pytest.raises(InputError, match=says):
        read_flagged("flagged.jsonl")


SPANS = (LossSpan(0, 1, 0.0, -1, "2"), LossSpan(2, 3))


def test_parts_are_masked_in_flagged_rows_and_their_copies() -> None:
    rows = [ROWS[0] | {"loss_spans": [{"start": 1, "end": 2, "weight": 0.5}]}, *ROWS[1:], ROWS[1]]
    write_rows(Path("mine.jsonl"), rows)
    flagged = [flag(1, rows[0])._replace(spans=SPANS[1:]), flag(2)._replace(spans=SPANS), flag(4)]
    change = change_of("mask", flagged, None, 1.0)
    assert write_cleaned(open_rows("mine.jsonl"), flagged, Path("cleaned.jsonl"), change) == (7, 0, 3, 1, 1)
    values = [json.loads(line) for line in Path("cleaned.jsonl").read_text("utf-8").splitlines()]
    masked = [{"start": 0, "end": 1, "weight": 0.0, "text": "2"}, {"start": 2, "end": 3, "weight": 0.0}]
    assert values[1] == values[6] == ROWS[1] | {"loss_spans": masked}
    assert values[0]["loss_spans"] == [*rows[0]["loss_spans"], masked[1]]
    assert values[2:6] == ROWS[2:]
    renamed = write_cleaned(open_rows("mine.jsonl"), flagged, Path("other.jsonl"), change, {"loss_spans": "spans"})
    assert renamed.changed == 3
    assert json.loads(Path("other.jsonl").read_text("utf-8").splitlines()[1])["spans"] == masked


def test_weights_fall_with_suspicion() -> None:
    flagged = [flag(1)._replace(spans=SPANS, suspicion=(4.0, 2.0)), flag(2)._replace(spans=SPANS[:1], suspicion=(3.0,))]
    change = change_of("weight", flagged, None, 0.5)  # around the median, 3 nats
    first, second = change(flagged[0]), change(flagged[1])
    assert first is not None
    assert second is not None
    assert [span.weight for span in first] == pytest.approx([1 / (1 + math.e**2), 1 / (1 + math.e**-2)], abs=1e-4)
    assert second[0].weight == 0.5
    extreme = change_of("weight", flagged, 1e6, 1e-6)(flagged[0])
    assert extreme is not None
    assert [span.weight for span in extreme] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("how", "flagged", "temperature", "says"),
    [
        ("mask", [flag(1)], 1.0, "nothing in them can be masked"),
        ("weight", [flag(1)._replace(spans=SPANS, suspicion=(1.0, None))], 1.0, "which some rows lack"),
        ("weight", [flag(1)._replace(spans=SPANS, suspicion=(1.0, 2.0))], 0.0, "must be above 0"),
    ],
)
def test_what_cannot_be_done_is_refused(how: str, flagged: list[FlaggedRow], temperature: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        change_of(how, flagged, None, temperature)


def test_the_list_of_an_audit_is_read_from_its_top() -> None:
    spans = [span.to_dict() | {"suspicion": 1.5} for span in SPANS]
    write_rows(
        Path("train.jsonl"),
        [{"file": "mine.jsonl", "row": number, "hash": "ab", "loss_spans": spans} for number in (3, 1, 2)],
    )
    assert [row.number for row in read_flagged("train.jsonl", 2)] == [3, 1]
    assert read_flagged("train.jsonl")[0].spans == SPANS
    assert read_flagged("train.jsonl")[0].suspicion == (1.5, 1.5)
    with pytest.raises(InputError, match="`--top` is 0"):
        read_flagged("train.jsonl", 0)
