"""What a run prints while it trains: lines in a log, a bar on a terminal, and nothing that says nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar

from dpr_lightning.callbacks import ProgressLines, TrainingBar
from dpr_lightning.callbacks import training_progress as progress
from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.lightning_cli.run_output import progress_options
from tests.training import quiet_trainer
from tests.workspace import make_workspace, write_dpr_config, write_resumable_config, write_sft_config

VISIBLE = {"enable_progress_bar": None, "enable_model_summary": None}
NUMBER = r"[\d.,e+-]+"
TIMES = r"\d:\d\d:\d\d elapsed, \d:\d\d:\d\d left"


class StepTrainer:
    """What ProgressLines reads of a trainer to decide on a line."""

    estimated_stepping_batches: float = 1000
    global_step = 0


def test_a_log_of_imitation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    workspace = make_workspace(tmp_path)
    evaluation = {"verifier": "exact_match", "max_new_tokens": 2, "temperatures": [0.0], "limit": 2}
    callback = {"class_path": "dpr_lightning.callbacks.GenerationEvaluation", "init_args": evaluation}
    config = write_sft_config(
        tmp_path,
        {"source": workspace.sft},
        workspace.demonstrations,
        validation=workspace.prompts,
        allow_overlap=True,
        trainer={**VISIBLE, "max_steps": 3, "callbacks": [callback], "val_check_interval": 2},
    )
    assert main(["fit", "--config", config]) == 0
    output = [line for line in capfd.readouterr().out.splitlines() if "get_accelerator" not in line]  # DeepSpeed's
    expected = [
        r"Training [\d,]+ weights in float32 on cpu: step 1 to 3\.",
        rf"step 0/3 \(0%\): evaluation greedy {NUMBER}, evaluation length greedy {NUMBER}",
        rf"step 1/3 \(33%\): loss {NUMBER}, {NUMBER} tokens/s, learning rate {NUMBER}, {TIMES}",
        rf"step 2/3 \(67%\): validation nll {NUMBER}, validation perplexity {NUMBER}, validation token .* {NUMBER}",
        rf"step 3/3 \(100%\): loss {NUMBER}, {NUMBER} tokens/s, learning rate {NUMBER}, {TIMES}",
        rf"step 3/3 \(100%\): evaluation greedy {NUMBER}, evaluation length greedy {NUMBER}",
    ]
    assert len(output) == len(expected)
    for line, pattern in zip(output, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert not [text for text in ("GPU available", "Seed set", "stopped:", "Tip:") if text in caplog.text]


def test_a_log_of_rollouts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workspace = make_workspace(tmp_path)
    config = write_dpr_config(tmp_path, workspace, trainer={**VISIBLE, "max_steps": 1})
    assert main(["fit", "--config", config]) == 0
    assert re.search(rf"1/1 \(100%\): loss {NUMBER}, reward {NUMBER}, kl {NUMBER}, ", capfd.readouterr().out)


def test_a_run_that_goes_on_counts_from_its_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workspace = make_workspace(tmp_path)
    config = write_resumable_config(tmp_path, workspace, workspace.demonstrations, trainer=VISIBLE | {"logger": False})
    config_of = ["fit", "--config", config, "--trainer.max_steps"]
    assert main([*config_of, "1"]) == 0
    capfd.readouterr()
    assert main([*config_of, "3"]) == 0
    output = capfd.readouterr().out
    assert "on cpu: step 2 to 3." in output
    assert re.search(rf"step 2/3 \(67%\): .*{TIMES}", output)


def test_no_progress_where_it_is_off_and_no_lines_of_another_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_options({"enable_progress_bar": False}) == {"enable_model_summary": False}
    assert progress_options({"barebones": True}) == {}
    lines = ProgressLines()
    lines.disable()
    lines.print("text")
    lines.enable()
    lines.print("more")
    assert capsys.readouterr().out == "more\n"


def test_the_config_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, bar = ModelSummary(), TQDMProgressBar()
    assert progress_options({"enable_model_summary": True, "callbacks": [summary, bar]}) == {}
    kinds = [type(callback) for callback in progress_options({"callbacks": [summary]})["callbacks"]]
    assert kinds == [ProgressLines, ModelSummary]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert [type(callback) for callback in progress_options({})["callbacks"]] == [TrainingBar]


def due(seconds: float, steps: int, every_s: float = 10.0, total: float = 1000) -> bool:
    """Whether a line follows ``steps`` steps and ``seconds`` after the one of step 100."""
    lines, trainer = ProgressLines(every_s), StepTrainer()
    lines._printed_step, lines._printed_s = 100, progress.time.monotonic() - seconds
    trainer.global_step, trainer.estimated_stepping_batches = 100 + steps, total
    return lines._is_due(trainer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"seconds": 11, "steps": 10}, True),
        ({"seconds": 9, "steps": 10}, False),
        ({"seconds": 11, "steps": 9}, False),
        ({"seconds": 61, "steps": 1}, True),
        ({"seconds": 0, "steps": 900}, True),
        ({"seconds": 61, "steps": 1, "every_s": 120}, False),
        ({"seconds": 59, "steps": 500, "total": float("inf")}, False),
        ({"seconds": 61, "steps": 1, "total": float("inf")}, True),
    ],
)
def test_when_a_line_is_due(arguments: dict[str, Any], expected: bool) -> None:
    assert due(**arguments) is expected


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(InputError, match="`every_s` is -1"):
        ProgressLines(-1)


def test_a_bar_counts_steps_and_epochs_from_one(tmp_path: Path) -> None:
    bar = TrainingBar()
    bar._trainer = quiet_trainer(tmp_path, max_epochs=3)
    assert bar._get_train_description(0) == "Epoch 1 of 3"
    bar._trainer = quiet_trainer(tmp_path, max_steps=3)
    assert bar._get_train_description(1).strip() == "Epoch 2"


def test_a_bar_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the step and the loss; what is measured has lines above it."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    metrics: list[dict[str, Any]] = []
    original = TrainingBar.get_metrics
    monkeypatch.setattr(TrainingBar, "get_metrics", lambda *each: metrics.append(original(*each)) or metrics[-1])
    workspace = make_workspace(tmp_path)
    rows = {"validation": workspace.prompts, "allow_overlap": True}
    config = write_sft_config(
        tmp_path,
        {"source": workspace.sft},
        workspace.demonstrations,
        trainer={**VISIBLE, "val_check_interval": 2},
        **rows,
    )
    assert main(["fit", "--config", config]) == 0
    output = capsys.readouterr().out
    assert "step 1 to 2." in output
    assert "step 2/2 (100%): validation nll" in output
    assert set(metrics[-1]) == {"step", "loss"}
    assert metrics[-1]["step"] == "2/2 (100%)"
