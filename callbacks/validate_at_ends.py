"""Validation before the first step and after the last, wherever the trainer's own interval falls."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng

from dpr_lightning.callbacks.run_ends import stopped_by_time
from dpr_lightning.trainer_attributes import is_trial


class ValidateAtEnds(Callback):
    """Runs the trainer's validation before the first step and after the last, unless that one was validated already.

    Its metrics are logged at step 0 and at the number of steps of the run. Training takes the same course as without:
    random numbers and the trainer's counts of batches are restored. Nothing happens where there is no validation, in a
    `trainer.fast_dev_run`, and after a run that `trainer.max_time` has interrupted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out Lightning's trial of the first batches: all are validated before the first step."""
        trainer.num_sanity_val_steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate before the first step; a run that goes on from a checkpoint is beyond it."""
        if trainer.global_step == 0 and self._last < 0:
            self._validate(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._last = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate after the last step."""
        if trainer.global_step != self._last and not stopped_by_time(trainer):
            self._validate(trainer, pl_module)

    def _validate(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.enable_validation or is_trial(trainer):
            return
        loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
        first_batch, progress = connector._first_loop_iter, loop.batch_progress.state_dict()
        trainer.validating = True
        module.on_validation_model_zero_grad()
        with isolate_rng():
            loop.run()
        trainer.training = True
        connector._first_loop_iter = first_batch
        loop.batch_progress.load_state_dict(progress)

    def state_dict(self) -> dict[str, Any]:
        """The step of the last validation."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after it."""
        self._last = int(state_dict["last"])
