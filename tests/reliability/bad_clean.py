"""Wrong input of `dpr clean`, with words of the error messages."""

from pathlib import Path
from typing import Any

from dpr_lightning.data.row_types import row_hash
from dpr_lightning.run_manifest import record_stage
from tests.reliability.kit import GOOD, Case, Kit
from tests.workspace import write_rows


def _clean(kit: Kit, *flagged: Any, output: str = "cleaned.jsonl", more: tuple[str, ...] = ()) -> list[str]:
    """`dpr clean` of a run on two rows, with this file of flagged rows."""
    train = _train(kit)
    record_stage(kit.folder / "run.json", "sft", {"policies": str(kit.folder), "train": train})
    path = write_rows(kit.folder / "flagged.jsonl", list(flagged))
    command = ["clean", "--run", str(kit.folder), "--output", str(kit.folder / output)]
    return [*command, *(more or ("--flagged", path))]


def _train(kit: Kit) -> str:
    return write_rows(kit.folder / "train.jsonl", [GOOD, {"prompt": "2 + 2 =", "completion": "4"}])


def _flag(kit: Kit, row: int = 1, file: str = "train.jsonl", **changes: Any) -> dict[str, Any]:
    """A row of the export from an audit's page."""
    flag = {"file": str(kit.folder / file), "row": row, "hash": row_hash(GOOD)}
    return flag | changes


def _flagged_in_the_training_rows(kit: Kit) -> list[str]:
    return _clean(kit, more=("--flagged", str(kit.folder / "train.jsonl")))


def _without_run(kit: Kit) -> list[str]:
    arguments = _clean(kit, _flag(kit))
    Path(kit.folder / "run.json").unlink()
    return arguments


CLEAN_CASES: dict[str, dict[str, Case]] = {
    "Marked rows for `dpr clean`": {
        "no file of marked rows": Case(
            lambda kit: _clean(kit, more=("--flagged", str(kit.folder / "flags.jsonl"))),
            ("flags.jsonl", "Export flagged.jsonl", "dpr audit --run"),
        ),
        "no option that names it": Case(lambda kit: _clean(kit, more=("--output", "x.jsonl")), ("--flagged",)),
        "the training rows as marked rows": Case(
            _flagged_in_the_training_rows, ("train.jsonl:1", "'file' is None", "export it again")
        ),
        "no marked row": Case(_clean, ("flagged.jsonl", "is empty")),
        "marked rows of another file": Case(
            lambda kit: _clean(kit, _flag(kit, file="other.jsonl", hash="0" * 16)),
            ("flagged.jsonl:1", "other.jsonl:1", "is not among the training rows"),
        ),
        "a mark on a row that has changed": Case(
            lambda kit: _clean(kit, _flag(kit, row=2)), ("flagged.jsonl:1", "train.jsonl:2", "Run the audit again")
        ),
        "a mark beyond the last row": Case(
            lambda kit: _clean(kit, _flag(kit, row=9)), ("flagged.jsonl:1", "train.jsonl has no row 9")
        ),
        "marks on all rows": Case(
            lambda kit: _clean(
                kit, _flag(kit), _flag(kit, row=2, hash=row_hash({"prompt": "2 + 2 =", "completion": "4"}))
            ),
            ("All rows of", "none would remain"),
        ),
        "rows to mask without their suspicious parts": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--how", "mask"], ("No flagged row has loss_spans", "--how drop")
        ),
        "parts to weight without their suspicion": Case(
            lambda kit: [*_clean(kit, _flag(kit, loss_spans=[{"start": 0, "end": 2}])), "--how", "weight"],
            ("`suspicion`", "lack"),
        ),
        "a temperature where nothing is weighted": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--temperature", "2"], ("--how weight",)
        ),
        "the first 0 of the marked rows": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--top", "0"], ("`--top` is 0", "1 or more")
        ),
        "a part that ends before it starts": Case(
            lambda kit: _clean(kit, _flag(kit, loss_spans=[{"start": 4, "end": 2}])), ("flagged.jsonl:1", "4 to 2")
        ),
        "a row number that is a word": Case(
            lambda kit: _clean(kit, _flag(kit) | {"row": "first"}), ("flagged.jsonl:1", "'row' is 'first'")
        ),
        "cleaned rows over the training rows": Case(
            lambda kit: _clean(kit, _flag(kit), output="train.jsonl"),
            ("train.jsonl", "the run's `train` reads", "`output`"),
        ),
        "cleaned rows over the marked rows": Case(
            lambda kit: _clean(kit, _flag(kit), output="flagged.jsonl"), ("flagged.jsonl", "`flagged` reads")
        ),
        "cleaned rows in a table": Case(
            lambda kit: _clean(kit, _flag(kit), output="cleaned.csv"), ("cleaned.csv", ".jsonl")
        ),
        "a new answer without a verifier": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--how", "relabel"], ("`--how relabel`", "`--verifier`")
        ),
        "a new answer without folds": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--how", "relabel", "--verifier", "numeric"],
            ("train.folds has none", "--rows train --folds 4"),
        ),
        "new answers of 0 samples": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--how", "relabel", "--verifier", "numeric", "--samples", "0"],
            ("`--samples` is 0",),
        ),
        "samples where nothing is sampled": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--samples", "4"], ("--how relabel",)
        ),
        "a misspelt option of `dpr clean`": Case(
            lambda kit: [*_clean(kit, _flag(kit)), "--flaged", "x.jsonl"],
            ("no option --flaged.", "Did you mean --flagged?"),
        ),
        "a folder without a run": Case(_without_run, ("`run`", "no run.json")),
    }
}
