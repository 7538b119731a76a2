"""When a policy in training is evaluated: before the first step, every so many steps, and at the end."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from dpr_lightning.callbacks.training_progress import score_line
from dpr_lightning.errors import InputError


class PeriodicEvaluation(Callback, ABC):
    """Asks :meth:`measure` when it is due, and logs what it says.

    Args:
        every_n_steps: optimizer steps between evaluations.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise InputError("`every_n_steps` must be at least 1.")
        self.every_n_steps = every_n_steps
        self._last = -1

    @abstractmethod
    def measure(self, trainer: Trainer, module: Any) -> dict[str, float]:
        """The metrics of the policy as it is now, by name."""

    @abstractmethod
    def metric_names(self) -> list[str]:
        """Names that :meth:`measure` returns, which other callbacks may monitor; ``*`` stands for any characters."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the policy as it is before the first step."""
        if self._last < 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every so many optimizer steps."""
        step = trainer.global_step
        if step and step % self.every_n_steps == 0 and not trainer.fit_loop._should_accumulate():
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the end of the run."""
        self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The step of the last evaluation, which is not made again."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last evaluation."""
        self._last = int(state_dict["last"])

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        scores = self.measure(trainer, module)
        trainer.callback_metrics.update({name: torch.tensor(score) for name, score in scores.items()})
        for logger in trainer.loggers:
            logger.log_metrics(scores, trainer.global_step)
        if trainer.progress_bar_callback is not None and trainer.is_global_zero:
            trainer.progress_bar_callback.print(score_line(trainer, scores))
