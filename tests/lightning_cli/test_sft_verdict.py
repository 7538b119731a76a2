"""What `dpr fit` says of more steps at its end, and that later commands repeat it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning.cli.main import main
from dpr_lightning.reports.metrics_table import read_curves
from tests.lightning_cli.test_run_defaults import minimal

OFTEN = ["--run.wandb=off", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=1"]
RISING = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.maximize=true", "--model.optimizer.lr=0.5"]
FALLING = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01"]


def noted(folder: str) -> dict[str, str]:
    """The verdict in the manifest of a run."""
    record: dict[str, str] = json.loads(Path(folder, "run.json").read_text())["stages"]["sft"]["finished"]
    return record


def test_a_falling_loss_says_what_twice_the_steps_are(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = [*minimal(), *OFTEN, *FALLING]
    assert main(fit) == 0
    printed, verdict = capsys.readouterr().out, noted("runs/mine")
    assert verdict["state"] == "unfinished"
    assert verdict["reason"] in printed.splitlines()
    values = [value for _, value in read_curves("runs/mine/metrics.csv")["validation/nll"]]
    assert len(values) == 5
    fall = 1 - values[-1] / min(values[1:-1])
    assert f"still falls, by {fall:.0%} since 75% of the run" in verdict["reason"]
    # A run of which nothing is left to do says it again, and writes nothing.
    before = Path("runs/mine/run.json").read_bytes()
    assert main(fit) == 0
    assert verdict["reason"] in capsys.readouterr().out.splitlines()
    assert Path("runs/mine/run.json").read_bytes() == before
    assert main(["report", "--run", "runs/mine"]) == 0
    assert "Is SFT finished? Validation loss still falls" in Path("runs/mine/report.html").read_text()
    # What it says to do can be done.
    ((name, value),) = re.findall(r"their own: `(\S+)` (\d+)\.$", verdict["reason"])
    assert main([*fit, f"--{name}={value}", "--trainer.default_root_dir=runs/twice"]) == 0
    assert (name, value) == ("trainer.max_steps", "8")
    assert len(read_curves("runs/twice/metrics.csv")["validation/nll"]) == 9


def test_a_rising_loss_has_its_lowest_value_named(case: Path) -> None:
    assert main([*minimal(), *OFTEN, *RISING]) == 0
    verdict = noted("runs/mine")
    assert verdict["state"] == "risen"
    assert "lowest before the first step" in verdict["reason"]


def test_validations_that_are_too_few(case: Path) -> None:
    fit = [*minimal(), *FALLING, "--run.wandb=off"]
    assert main([*fit, "--trainer.check_val_every_n_epoch=100"]) == 0
    verdict = noted("runs/mine")
    assert verdict["state"] == "unknown"
    ((every, interval),) = re.findall(
        r"validations: `(\S+)` null with `trainer\.val_check_interval` (\d+)\.$", verdict["reason"]
    )
    options = [f"--{every}=null", f"--trainer.val_check_interval={interval}", "--trainer.default_root_dir=runs/often"]
    assert main([*fit, *options]) == 0
    assert noted("runs/often")["state"] == "unfinished"


@pytest.mark.parametrize(
    "options", [["--data.validation=null"], ["--model.loss=dft"], ["--trainer.fast_dev_run=1"], ["--run.csv=false"]]
)
def test_runs_that_are_not_judged(case: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*minimal(), *OFTEN, *options]) == 0
    assert "finished" not in capsys.readouterr().out
    manifest = Path("runs/mine/run.json")
    assert not manifest.exists() or "finished" not in json.loads(manifest.read_text())["stages"]["sft"]


def test_epochs_are_doubled_where_they_end_the_run(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer: dict[str, Any] = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    assert main([*minimal(trainer=trainer), *FALLING, "--run.wandb=off"]) == 0
    reason = noted("runs/mine")["reason"]
    assert "epochs: 3)" in reason
    assert reason.endswith("`trainer.max_epochs` 6 (`dpr sft`: --epochs 6).")
