"""Learning-rate schedules, with their length spelt out."""

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch import Trainer
from transformers import get_scheduler

from dpr_lightning.errors import InputError


@dataclass
class ScheduleSpec:
    """How the learning rate moves.

    Args:
        kind: shape after the warm-up.
        warmup_fraction: share of the steps over which the rate rises from 0.
        total_steps: optimizer steps until the end of the schedule; None takes the trainer's ``max_steps``, or counts
            them.
    """

    kind: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_fraction: float = 0.03
    total_steps: int | None = None

    def steps(self, trainer: Trainer) -> int:
        """Optimizer steps until the end of the schedule.

        Raises:
            InputError: the run has no end, or no steps.
        """
        total = self.total_steps or (trainer.max_steps if trainer.max_steps > 0 else None)
        estimated = total if total is not None else trainer.estimated_stepping_batches
        if estimated == float("inf"):
            raise InputError(
                "The learning rate follows the length of the run, and this one has no end. Set `trainer.max_steps` or "
                "`trainer.max_epochs`, or `schedule.total_steps`."
            )
        if int(estimated) < 1:
            raise InputError("The run has no optimizer steps; set `trainer.max_steps` or `trainer.max_epochs`.")
        return int(estimated)

    def build(self, optimizer: torch.optim.Optimizer, trainer: Trainer) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler for a trainer's run; it moves once an optimizer step."""
        steps = self.steps(trainer)
        warmup = int(self.warmup_fraction * steps)
        name = "constant_with_warmup" if self.kind == "constant" else self.kind
        scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
        )
        return scheduler
