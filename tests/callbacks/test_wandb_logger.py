"""A service that is down costs a run its live curves and nothing else."""

import logging
from pathlib import Path

import pytest
import wandb

from dpr_lightning.callbacks import WandbLogger


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
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert kept.stat().st_size > 0
