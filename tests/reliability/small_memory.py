"""Modules on a device that has memory for few rows, and for fewer once a run is a few steps old."""

from typing import Any

import torch
from torch import Tensor

from dpr_lightning.modules import DensePathReinforce, SupervisedIRL


class SmallMemory:
    """Mixed into a module: a micro-batch of more than ``rows`` rows is too large, from step 3 on one of more than 1."""

    rows = 2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As ever, or what PyTorch says on a GPU."""
        step = self.global_step  # type: ignore[attr-defined]
        if len(batch.mask) > (self.rows if step < 3 else 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        loss: Tensor = super().training_step(batch, batch_idx)  # type: ignore[misc]
        return loss


class SmallSFT(SmallMemory, SupervisedIRL):
    """SFT there."""


class SmallDPR(SmallMemory, DensePathReinforce):
    """DPR there."""


class NoMemory(SmallSFT):
    """Not even a row fits."""

    rows = 0
