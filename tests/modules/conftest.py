"""Training steps through a real Trainer, on a tiny policy."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
from lightning import LightningModule

from tests.training import quiet_trainer


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., lightning.Trainer]:
    """Makes quiet CPU trainers."""
    return partial(quiet_trainer, tmp_path)


def weights(module: LightningModule) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])
