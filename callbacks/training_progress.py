"""Progress of training: a bar on a terminal, lines in a log."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from dpr_lightning.errors import InputError
from dpr_lightning.modules.base import PolicyModule
from dpr_lightning.partitioned_weights import whole_numel
from dpr_lightning.progress import SECONDS_BETWEEN_LINES, ProgressLog, share_done, times

LONGEST_SILENCE_S = 60.0
LEAST_SHARE = 0.01
"""Share of a run's steps after which another line may follow, unless LONGEST_SILENCE_S have passed."""


def training_sentence(trainer: Trainer, module: LightningModule) -> str:
    """How many weights are trained, in which type, on what, and at which step training begins and ends."""
    weights = list(module.parameters())
    every = sum(whole_numel(weight) for weight in weights)
    trained = [weight for weight in weights if weight.requires_grad]
    number = sum(whole_numel(weight) for weight in trained)
    amount = f"{number:,}" if number == every else f"{number:,} of {every:,} ({number / every:.1%})"
    kinds = " and ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in trained})) or "no type"
    ranks = f" on {trainer.world_size} ranks" if trainer.world_size > 1 else ""
    total = _total_steps(trainer)
    steps = f"step {trainer.global_step + 1:,}" + (f" to {total:,}" if total else " on")
    return f"Training {amount} weights in {kinds} on {trainer.strategy.root_device.type}{ranks}: {steps}."


class TrainingBar(RichProgressBar):
    """Lightning's bar, with the step of the run and epochs counted from 1."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar under a line on what is trained."""
        if self.is_enabled:
            self.print(training_sentence(trainer, pl_module))
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The step, and what the module marks for the bar: not a logger's version, nor validation, which has a line."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        short = {name.removeprefix("train/"): value for name, value in metrics.items() if "validation/" not in name}
        short.pop("v_num", None)
        return {"step": share_done(trainer.global_step, _total_steps(trainer)), **short}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what a validation in training measured, above the bar."""
        super().on_validation_end(trainer, pl_module)
        if self.is_enabled and (line := _validation_line(trainer)):
            self.print(line)

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f" of {epochs}" if epochs and epochs > 0 else "")
        return f"{text:{len(self.validation_description)}}"


class ProgressLines(ProgressBar):
    """Prints lines with step, loss, rate, learning rate and time left, for output that is no terminal.

    There is a line for the first and the last step, and else for each 1% of the run or each minute, whichever comes
    first; but none sooner than ``every_s`` seconds after the one before. Validations have a line each.

    Args:
        every_s: least time between two lines of steps, seconds.
    """

    def __init__(self, every_s: float = SECONDS_BETWEEN_LINES) -> None:
        super().__init__()
        if every_s < 0:
            raise InputError(f"ProgressLines: `every_s` is {every_s:g}; it is a number of seconds, at least 0.")
        self.every_s = every_s
        self._enabled = True
        self._began_s: float | None = None
        self._printed_s = 0.0
        self._first_step = self._printed_step = 0
        self._printed_units = 0.0
        self._rates: list[float] = []
        self._evaluation: ProgressLog | None = None

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing, as on all ranks but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line at once, also into a pipe or a file."""
        if self._enabled:
            print(*args, **{"flush": True, **kwargs})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what is trained."""
        if self._enabled:
            self.print(training_sentence(trainer, pl_module))
        self._began_s = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first step of this process, after what callbacks measure before it."""
        if self._began_s is None:
            self._began_s = self._printed_s = time.monotonic()
            self._first_step = self._printed_step = trainer.global_step
            self._printed_units = 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note the learning rates of this step, before a schedule changes them."""
        self._rates = [group["lr"] for each in trainer.optimizers for group in each.param_groups]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line where one is due after this step."""
        if self._enabled and trainer.global_step > self._printed_step and self._is_due(trainer):
            self._print_step(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last step, where no line has it yet."""
        if self._enabled and trainer.global_step > self._printed_step:
            self._print_step(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._evaluation = self._log("validation", trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._evaluation = self._log("test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._evaluation = self._log("prediction", trainer.num_predict_batches)

    def on_validation_batch_end(self, *arguments: Any, **keywords: Any) -> None:
        """Print a line where an evaluation takes long."""
        if self._evaluation is not None:
            self._evaluation.advance(1)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what a validation in training measured; that of ``dpr validate`` is in Lightning's table."""
        if line := _validation_line(trainer):
            self.print(line)

    def _log(self, title: str, batches: list[Any]) -> ProgressLog | None:
        total = sum(batches)
        log = ProgressLog(title, int(total) if total != float("inf") else None, self.every_s, self.print)
        return log if self._enabled else None

    def _is_due(self, trainer: Trainer) -> bool:
        steps, total = trainer.global_step - self._printed_step, _total_steps(trainer)
        if trainer.global_step == self._first_step + 1 or trainer.global_step == total:
            return True
        silence_s = time.monotonic() - self._printed_s
        if silence_s < self.every_s:
            return False
        return silence_s >= LONGEST_SILENCE_S or (total is not None and steps >= LEAST_SHARE * total)

    def _print_step(self, trainer: Trainer, module: LightningModule) -> None:
        now, step = time.monotonic(), trainer.global_step
        metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if "validation/" not in name}
        parts = [_listed(metrics)] if metrics else []
        if isinstance(module, PolicyModule):
            units = module.trained_units()
            parts.append(f"{(units - self._printed_units) / (now - self._printed_s):,.0f} {module.unit}/s")
            self._printed_units = units
        if self._rates:
            parts.append(f"learning rate {' '.join(sorted({f'{rate:.3g}' for rate in self._rates}))}")
        total = _total_steps(trainer)
        remaining = total - self._first_step if total else None
        parts.append(times(now - (self._began_s or now), step - self._first_step, remaining))
        self.print(f"{_step(trainer)}: {', '.join(parts)}")
        self._printed_s, self._printed_step = now, step


def _validation_line(trainer: Trainer) -> str | None:
    """What a validation measured; None outside training, where Lightning prints a table of it."""
    if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return None
    scores = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("validation/")}
    return score_line(trainer, scores) if scores else None


def score_line(trainer: Trainer, scores: Mapping[str, Any]) -> str:
    """The step of a run with what was measured there."""
    return f"{_step(trainer)}: {_listed(scores)}"


def _step(trainer: Trainer) -> str:
    return f"step {share_done(trainer.global_step, _total_steps(trainer))}"


def _total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the run; None where nothing but time ends it."""
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < float("inf") else None


def _listed(metrics: Mapping[str, Any]) -> str:
    """``loss 1.09, reward 0.3``."""
    return ", ".join(
        f"{name.removeprefix('train/').replace('/', ' ').replace('_', ' ')} {float(value):.4g}"
        for name, value in metrics.items()
        if isinstance(value, (int, float, torch.Tensor))
    )
