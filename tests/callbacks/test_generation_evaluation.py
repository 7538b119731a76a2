"""GenerationEvaluation answers the rows that the run's data hold out, unless it names others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning.cli.main import main
from tests.workspace import Workspace, make_workspace, write_dpr_config, write_rows, write_sft_config

PROMPTS: set[str] = set()
TRAINED = [{"question": f"{a} + 1 =", "completion": f"Answer: {a + 1}"} for a in range(8)]
HELD_OUT = [{"question": f"{a} + 2 =", "completion": f"Answer: {a + 2}"} for a in range(3)]
COLUMNS = {"prompt": "question"}


def records(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
    """A verifier that records which prompts were answered."""
    PROMPTS.add(prompt)
    return 0.0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("evaluation"))


def evaluation(**options: Any) -> dict[str, Any]:
    options = {"verifier": f"{__name__}:records", "max_new_tokens": 3, "temperatures": [0.0], **options}
    return {"callbacks": [{"class_path": "dpr_lightning.callbacks.GenerationEvaluation", "init_args": options}]}


def answered(config: str) -> set[str]:
    PROMPTS.clear()
    assert main(["fit", "--config", config, "--trainer.max_steps=1"]) == 0
    return set(PROMPTS)


def test_demonstrations_of_validation(tmp_path: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    train, rows = write_rows(tmp_path / "train.jsonl", TRAINED), write_rows(tmp_path / "held.jsonl", HELD_OUT)

    def config(**options: Any) -> str:
        policy, trainer = {"source": workspace.sft}, evaluation(**options)
        return write_sft_config(tmp_path, policy, train, trainer=trainer, validation=rows, columns=COLUMNS)

    assert answered(config()) == {row["question"] for row in HELD_OUT}
    assert "not of the run's data" not in caplog.text
    assert answered(config(prompts=workspace.prompts, limit=2)) == {"0 + 0 =", "0 + 1 ="}
    assert f"the prompts are those of {workspace.prompts}, not of the run's data" in caplog.text
    assert "the run also learns from 1 of its 2 prompts" in caplog.text
    assert len(answered(config(prompts=train, columns=COLUMNS, limit=5))) == 5
    assert "the run also learns from 5 of its 5 prompts" in caplog.text


@pytest.mark.parametrize("validation", ["auto", 0.5])
def test_rows_held_out_of_the_demonstrations(
    tmp_path: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture, validation: Any
) -> None:
    """They are there with a file and without."""
    train, file = write_rows(tmp_path / "train.jsonl", TRAINED), str(tmp_path / "held_out.jsonl")
    options: dict[str, Any] = {"validation": validation, "columns": COLUMNS}

    def config(held_out_file: str | None = None, **of_callback: Any) -> str:
        policy, trainer = {"source": workspace.sft}, evaluation(**of_callback)
        return write_sft_config(tmp_path, policy, train, trainer=trainer, held_out_file=held_out_file, **options)

    held_out = answered(config())
    assert len(held_out) == (1 if validation == "auto" else 4)
    assert answered(config(file)) == held_out
    assert {json.loads(line)["question"] for line in Path(file).read_text().splitlines()} == held_out
    assert "not of the run's data" not in caplog.text
    PROMPTS.clear()
    assert main(["fit", "--config", config(file), "--trainer.fast_dev_run=true"]) == 0
    assert held_out == PROMPTS


def test_nothing_held_out_is_refused(tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_rows(tmp_path / "train.jsonl", TRAINED[:3])
    config = write_sft_config(
        tmp_path, {"source": workspace.sft}, train, trainer=evaluation(), validation="auto", columns=COLUMNS
    )
    assert main(["fit", "--config", config]) == 2
    assert "the run's data hold out no rows: set `data.validation`" in capsys.readouterr().err


def test_held_out_rows_of_prompts(tmp_path: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    prompts, rows = write_rows(tmp_path / "train.jsonl", TRAINED), write_rows(tmp_path / "held.jsonl", HELD_OUT)
    data = {"prompts": prompts, "held_out": rows, "columns": COLUMNS}
    config = write_dpr_config(tmp_path, workspace, trainer=evaluation(), **data)
    assert answered(config) == {row["question"] for row in HELD_OUT}
    named = write_dpr_config(tmp_path, workspace, trainer=evaluation(prompts=prompts, columns=COLUMNS), **data)
    assert answered(named) == {row["question"] for row in TRAINED}
    assert "the run also learns from 8 of its 8 prompts" in caplog.text
