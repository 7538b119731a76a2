"""Training steps through a real Trainer, on a tiny policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import LightningModule


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., lightning.Trainer]:
    """Makes quiet CPU trainers."""

    def make(**options: Any) -> lightning.Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return lightning.Trainer(**(quiet | options))

    return make


def weights(module: LightningModule) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])
