"""Validation before the first step and after the last; the best policy by it, and runs that it ends."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning import Callback, Trainer
from safetensors.torch import load_file

from dpr_lightning.callbacks import ValidateAtEnds
from dpr_lightning.cli.main import main
from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec
from tests.gates.cases import STRATEGIES
from tests.gates.commands import dpr
from tests.gates.record import metrics
from tests.reliability.runs import unlike
from tests.training import QUIET
from tests.workspace import Workspace, make_workspace, write_rows

NLL = "validation/nll"
STEPS = 6
NEVER = ["--trainer.check_val_every_n_epoch=100"]
BETWEEN = ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"]


class Stop(Callback):
    """Sends this process the signal of a scheduler after a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("validation"))


@pytest.fixture
def config(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters with dropout, so that random numbers matter, learn from 24 rows, of which 4 are held out."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n} + 1 =", "completion": f"Answer: {n + 1}"} for n in range(24)]
    policy = {"source": workspace.sft, "lora": {"rank": 2, "alpha": 64, "dropout": 0.3}}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "dpr_lightning.modules.SupervisedIRL", "init_args": {"policy": policy}},
        "data": {
            "class_path": "dpr_lightning.data.DemonstrationDataModule",
            "init_args": {"train": write_rows(tmp_path / "rows.jsonl", rows), "batch_size": 4, "cache_dir": None},
        },
        "trainer": {
            **{name: value for name, value in QUIET.items() if name.startswith("enable_p") or name == "accelerator"},
            **{"devices": 1, "max_steps": STEPS, "max_epochs": -1, "log_every_n_steps": 1},
        },
        "run": {"wandb": False, "resume_every_n_steps": 2, "references": [0.5]},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, folder: str, *options: str) -> dict[str, Any]:
    """Every logged value with its step."""
    assert main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", *options]) == 0
    return metrics(Path(folder) / "metrics.csv")


def steps(values: dict[str, Any]) -> list[int]:
    return [step for step, _ in values.get(NLL, [])]


def weights(folder: str, policy: str) -> bytes:
    return (Path(folder) / "policies" / policy / "adapter_model.safetensors").read_bytes()


def test_the_first_and_the_last_policy_are_validated(config: Path, workspace: Workspace) -> None:
    result = fit(config, "run", *NEVER)
    assert steps(result) == [0, STEPS]
    for source, (_, value) in zip((workspace.sft, "run/policies/final"), result[NLL], strict=True):
        data = DemonstrationDataModule("rows.jsonl", batch_size=4, cache_dir=None)
        trainer = lightning.Trainer(**QUIET)
        expected = trainer.validate(SupervisedIRL(PolicySpec(source=source)), data, verbose=False)[0][NLL]
        assert value == pytest.approx(expected, rel=1e-5)


class NoTrial(Callback):
    """Fails where Lightning tries a few batches before it validates all of them."""

    def on_sanity_check_start(self, trainer: Trainer, *_: Any) -> None:
        raise AssertionError


def test_no_batch_is_tried_before_all_are_validated(config: Path) -> None:
    assert steps(fit(config, "run", *NEVER, f"--trainer.callbacks+={__name__}.NoTrial")) == [0, STEPS]


@pytest.mark.parametrize(
    ("interval", "plain_steps", "all_steps"),
    [(BETWEEN, [1, 3, 5], [0, 1, 3, 5]), pytest.param(NEVER, [], [0, 6], marks=pytest.mark.slow)],
)
def test_training_takes_the_same_course_without(
    config: Path, interval: list[str], plain_steps: list[int], all_steps: list[int]
) -> None:
    """The last step is not validated again; Lightning numbers a validation by the step that it has just logged."""
    validated, plain = fit(config, "run", *interval), fit(config, "other", *interval, "--run.validate_at_ends=false")
    assert (steps(plain), steps(validated)) == (plain_steps, all_steps)
    assert {name: value for name, value in validated.items() if "validation/" not in name} == {
        name: value for name, value in plain.items() if "validation/" not in name
    }
    assert set(map(tuple, plain.get(NLL, []))) <= set(map(tuple, validated[NLL]))
    assert weights("run", "final") == weights("other", "final")
    loops, expected = (
        torch.load(f"{folder}/checkpoints/step_0000006/state.ckpt", weights_only=False)["loops"]["fit_loop"]
        for folder in ("run", "other")
    )
    assert not unlike(loops, expected)
    assert loops["epoch_loop.val_loop.batch_progress"] == expected["epoch_loop.val_loop.batch_progress"]


def test_a_run_that_goes_on_validates_what_is_left(config: Path) -> None:
    options = ["--run.best=true", "--run.early_stopping=5", *NEVER]
    whole = fit(config, "whole", *options)
    stop = f"--trainer.callbacks+={__name__}.Stop"
    command = ["fit", "--config", str(config), "--trainer.default_root_dir=run", *options]
    with pytest.raises(SystemExit) as stopped:
        main([*command, stop, "--trainer.callbacks.at=3"])
    assert stopped.value.code == 75
    assert steps(metrics(Path("run/metrics.csv"))) == [0]
    assert fit(config, "run", *options) == whole
    assert steps(whole) == [0, STEPS]
    assert weights("run", "best") == weights("whole", "best")
    before = Path("run/metrics.csv").read_bytes()
    assert main(command) == 0  # nothing is left to do
    assert Path("run/metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.fast_dev_run=2"],
        ["--trainer.limit_val_batches=0"],
        ["--data.validation=null"],
        ["--trainer.limit_val_batches=0", "--data.validation=0.5"],
        ["--trainer.barebones=true", "--trainer.log_every_n_steps=null"],
    ],
)
def test_runs_without_validation(config: Path, options: list[str]) -> None:
    command = ["fit", "--config", str(config), "--trainer.default_root_dir=run", *options]
    if "barebones" in options[0]:
        content = yaml.safe_load(config.read_text())
        content["trainer"] = {"barebones": True, "accelerator": "cpu", "devices": 1, "max_steps": 2}
        config.write_text(yaml.safe_dump(content))
        command = command[:-1]
    assert main(command) == 0
    table = Path("run/metrics.csv")
    assert not table.exists() or not steps(metrics(table))


def test_a_share_of_the_validation_batches(config: Path) -> None:
    """`trainer.limit_val_batches` bounds the cost at the ends too."""
    counted: list[int] = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
            counted.append(trainer.global_step)

    data = DemonstrationDataModule("rows.jsonl", validation=0.5, batch_size=4, cache_dir=None)
    module = SupervisedIRL(
        PolicySpec(source=yaml.safe_load(config.read_text())["model"]["init_args"]["policy"]["source"])
    )
    trainer = lightning.Trainer(
        **QUIET, max_steps=2, limit_val_batches=1, num_sanity_val_steps=0, callbacks=[ValidateAtEnds(), Count()]
    )
    trainer.fit(module, data)
    assert counted == [0, 2]


def test_the_best_policy_is_that_of_its_step(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate that is too high makes later validations worse."""
    options = [*BETWEEN, "--run.best=true", "--run.references=[0.34,0.67]", "--model.optimizer=torch.optim.SGD"]
    values = fit(config, "run", *options, "--model.optimizer.lr=1.0", "--model.schedule.kind=constant")[NLL]
    after = [value for _, value in values[1:]]
    step = 2 * (1 + after.index(min(after)))
    assert step < STEPS
    assert weights("run", "best") == weights("run", f"step_{step:07}")
    assert weights("run", "best") != weights("run", "final")
    listed = json.loads(Path("run/policies/references.json").read_text())
    assert "best" not in listed
    assert f"The one with the best validation, of step {step}, is in run/policies/best." in capsys.readouterr().out


def test_a_run_without_a_better_validation_ends(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = [*BETWEEN, "--run.best=true", "--run.early_stopping=2", "--model.optimizer=torch.optim.SGD"]
    options += ["--model.optimizer.maximize=true", "--model.optimizer.lr=0.5", "--model.schedule.kind=constant"]
    options.append("--trainer.max_steps=20")
    assert steps(fit(config, "run", *options)) == [0, 1, 3]
    assert "run/policies/best has the policy of step 2" in caplog.text
    assert "which was better before the first step" in caplog.text
    assert "A callback ended the run at step 4 of 20: it is finished." in caplog.text
    before = (Path("run") / "metrics.csv").read_bytes()
    assert steps(fit(config, "run", *options)) == [0, 1, 3]
    assert (Path("run") / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.validation=null"], "`run.best` compares policies by validation/nll, and this run has no validation"),
        (["--trainer.limit_val_batches=0"], "leave `trainer.limit_val_batches` above 0"),
        (["--run.early_stopping=0"], "`run.early_stopping`: found 0. It is at least 1; null switches it off."),
    ],
)
def test_what_cannot_be_compared_is_refused(
    config: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config), "--run.best=true", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3", "fsdp2"))]
)
def test_ranks_validate_together(config: Path, strategy: str, tmp_path: Path) -> None:
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {
        "devices": 2,
        "strategy": STRATEGIES[strategy],
        "default_root_dir": "run",
        "check_val_every_n_epoch": 100,
    }
    content["model"]["init_args"]["policy"].pop("lora")
    content["run"] |= {"best": True}
    config.write_text(yaml.safe_dump(content))
    dpr(["fit", "--config", str(config)], tmp_path / "log", ranks=2)
    assert steps(metrics(Path("run/metrics.csv"))) == [0, STEPS]
    assert load_file("run/policies/best/model.safetensors")
