"""A service that is down costs a run its live curves and nothing else."""

import functools
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from dpr_lightning.callbacks import WandbLogger, wandb_logger
from dpr_lightning.cli.main import main
from tests.workspace import make_workspace, write_resumable_config


def test_a_service_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.finish()  # of another test
    wandb.teardown()
    logger = WandbLogger(init_timeout=2.0, project="test", save_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"loss": 1.0}, step=0)
    assert "cannot be reached" in caplog.text
    assert str(tmp_path) in caplog.text
    logger.experiment.finish()
    wandb.teardown()
    (saved,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert saved.stat().st_size > 0


@pytest.mark.parametrize("imported", [False, True])
def test_inputs_of_launch_are_looked_for_where_there_can_be_any(
    imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[object] = []
    inputs = SimpleNamespace(apply=runs.append)
    name = "wandb.sdk.launch.inputs.internal"
    monkeypatch.delitem(sys.modules, name, raising=False)
    if imported:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(StagedLaunchInputs=lambda: inputs))  # type: ignore[arg-type]
    logger = WandbLogger(offline=True, project="test", save_dir=str(tmp_path))
    run = logger.experiment
    assert runs == [run] * imported
    assert (name in sys.modules) is imported


@pytest.mark.parametrize(
    ("offline", "says"),
    [(None, ["has no key on this machine", "`run.wandb: off`"]), (False, ["No API key", "`offline: true`"])],
)
def test_a_service_without_a_key(
    offline: bool | None,
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.finish()
    wandb.teardown()
    logger = WandbLogger(init_timeout=2.0, offline=offline, project="test", save_dir=str(tmp_path))
    logger.log_metrics({"loss": 1.0}, step=0)
    (record,) = (record for record in caplog.records if record.name == wandb_logger.log.name)
    assert all(text in record.getMessage() for text in [*says, str(tmp_path)])
    assert "wandb:" not in "".join(capfd.readouterr())
    logger.experiment.finish()
    wandb.teardown()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("environment", "file", "is_set_up"),
    [
        ({}, "", False),
        ({}, "machine elsewhere.org login user password 0\n", False),
        ({}, "machine wandb.example login user password 0\n", True),
        ({"WANDB_API_KEY": "0" * 40}, "", True),
        ({"WANDB_MODE": "disabled"}, "", True),
    ],
)
def test_a_key_is_looked_for_where_wandb_looks(
    environment: dict[str, str], file: str, is_set_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(file)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    assert wandb_logger._is_set_up() is is_set_up
    wandb.teardown()


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id, which is in the checkpoint, is all that makes it one; a new run has a new id."""
    ids: list[Any] = []

    class Run:
        name, config, offline = "run", type("Config", (), {"update": lambda *_, **__: None})(), True

        def __init__(self, identifier: str) -> None:
            self.id = identifier

        def log(self, *_: Any, **__: Any) -> None:
            """Nothing."""

    @functools.wraps(wandb.init)  # its options with their defaults are what a config fills in
    def init(**options: Any) -> Run:
        assert options["resume"] == "allow"
        ids.append(options["id"])
        return Run(options["id"] or f"new_{len(ids)}")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "run", None)
    workspace = make_workspace(tmp_path)
    entry = {"class_path": "dpr_lightning.callbacks.WandbLogger", "init_args": {"save_dir": str(tmp_path)}}
    config = write_resumable_config(tmp_path, workspace, workspace.demonstrations, trainer={"logger": entry})
    for options in (["--trainer.max_steps", "2"], ["--trainer.max_steps", "4"], ["--ckpt_path", "none"]):
        assert main(["fit", "--config", config, *options]) == 0
    assert ids == [None, "new_1", None]
    manifest = json.loads((tmp_path / "checkpoints" / "step_0000002" / "manifest.json").read_text())
    assert manifest["wandb_runs"] == ["new_3"]
