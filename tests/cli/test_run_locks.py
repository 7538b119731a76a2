"""Two runs do not write one folder."""

import json
from pathlib import Path

import pytest

from dpr_lightning.cli.main import main
from dpr_lightning.lightning_cli.path_checks import protected
from dpr_lightning.locking import LOCK, write_lock
from dpr_lightning.paths import PathUse, Writes
from tests.cli.path_kit import EXPORT, POLICY, Begun, begin, fit, refused


def test_the_lock_of_a_run(case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = fit("sft")
    for folder in ("out", "out/policies", "out/checkpoints"):
        (case / folder).mkdir(exist_ok=True)
        owner = {"pid": 1, "host": "node7", "since": "2031-01-01T00:00:00+00:00", "command": "dpr fit", "boot": "b"}
        (case / folder / LOCK).write_text(json.dumps(owner))
        refused(arguments, capsys, "process 1 on node7, since 2031", str(case / folder / LOCK))
        monkeypatch.setenv("LOCAL_RANK", "1")
        with pytest.raises(Begun):
            begin(arguments)
        monkeypatch.delenv("LOCAL_RANK")
        (case / folder / LOCK).unlink()
    assert main(["plan", *arguments[1:]]) == 0  # only reads


def test_nothing_is_written_into_the_policies_of_a_run_that_trains(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = {"pid": 1, "host": "node7", "since": "2031-01-01T00:00:00+00:00", "command": "dpr fit", "boot": "b"}
    (case / "out" / "policies" / "final").mkdir(parents=True)
    (case / "out" / "policies" / LOCK).write_text(json.dumps(owner))
    for output in ("out/policies", "out/policies/final", "out/policies/mine"):
        refused([*EXPORT, output], capsys, "process 1 on node7, since 2031", str(case / "out" / "policies" / LOCK))
    refused(["generate", *POLICY, "--output", "out/policies/answers.jsonl"], capsys, "process 1 on node7")
    assert main([*EXPORT, "out/mine"]) == 0
    (case / "out" / "policies" / LOCK).unlink()
    (case / "out" / "policies" / ".final.lock").write_text(json.dumps(owner))
    refused(fit("sft"), capsys, "process 1 on node7", "final")  # the other way round


def test_a_run_locks_its_table_and_not_what_lies_beside_it(case: Path) -> None:
    uses = [PathUse("a", case / "run", Writes("metrics.csv", marks=("step",)))]
    with protected(uses):
        assert json.loads((case / "run" / LOCK).read_text())["files"] == ["metrics.csv"]
    with protected([*uses, PathUse("b", case / "run", Writes("final", whole=True))]):
        assert json.loads((case / "run" / LOCK).read_text())["files"] == []


def test_an_error_releases_the_lock(case: Path) -> None:
    assert main(fit("sft", "--data.train", "nowhere.jsonl")) == 2
    assert not list(case.rglob(".*lock"))
    assert not (case / "out").exists()


def test_the_lock_of_another_command(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner = {"pid": 1, "host": "node7", "since": "2031-01-01T00:00:00+00:00", "command": "dpr", "boot": "b"}
    (case / ".other.lock").write_text(json.dumps(owner))
    refused([*EXPORT, "other"], capsys, "node7", "other")
    with write_lock(case / "third", inside=False):
        assert main([*EXPORT, "third"]) == 0
