"""The policy of the step with the best validation, as an ordinary Hugging Face folder."""

import logging
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from dpr_lightning.callbacks.reference_checkpoints import write_policy
from dpr_lightning.errors import InputError
from dpr_lightning.paths import Writes
from dpr_lightning.trainer_attributes import callbacks_of, is_trial

log = logging.getLogger(__name__)
BEST = "best"


class BestPolicy(Callback):
    """Writes the policy to ``best`` after each validation that is better than all since the first step.

    The policy before the first step is never written; where its validation was the best, a warning says so.

    Args:
        folder: receives ``best``.
        monitor: name of the metric of validation.
        mode: whether the best has the smallest (``min``) or the largest value (``max``).
        check: whether the folder is compared with the policy in memory before it replaces anything.

    Attributes:
        step: of the policy that was written; None before.
    """

    def __init__(
        self,
        folder: Annotated[str, Writes(BEST, whole=True)],
        monitor: str,
        mode: Literal["min", "max"] = "min",
        check: bool = True,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.monitor, self.mode = monitor, mode
        self.check = check
        self.step: int | None = None
        self._value = math.nan
        self._before = math.nan

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse averages of weights, which are validated instead of the weights that would be written.

        Raises:
            InputError: names the callback that averages.
        """
        for callback in callbacks_of(trainer):
            if isinstance(callback, WeightAveraging):
                raise InputError(
                    f"`trainer.callbacks`: {type(callback).__name__} has its average validated, and BestPolicy "
                    "(`run.best`) would write the weights of the step. Leave one of them out."
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the policy where it is the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or is_trial(trainer):
            return
        value = float(trainer.callback_metrics[self.monitor])
        if trainer.global_step == 0:
            self._before = value
        elif trainer.strategy.broadcast(math.isfinite(value) and (self.step is None or self._is_better(value))):
            self.step, self._value = trainer.global_step, value
            write_policy(trainer, pl_module, self.folder / BEST, check=self.check)

    def _is_better(self, value: float) -> bool:
        return value < self._value if self.mode == "min" else value > self._value

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the step of the best policy."""
        if not trainer.is_global_zero or is_trial(trainer):
            return
        if self.step is None:
            log.warning("No policy is in %s: no validation gave a finite %s.", self.folder / BEST, self.monitor)
            return
        best = f"{self.folder / BEST} has the policy of step {self.step:,}: {self.monitor} {self._value:.4g}"
        if self._is_better(self._before):
            log.warning("%s, which was better before the first step: %.4g.", best, self._before)
        else:
            log.info("%s.", best)

    def state_dict(self) -> dict[str, Any]:
        """The best step so far and its value."""
        return {"step": self.step, "value": self._value, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing."""
        self.step, self._value, self._before = state_dict["step"], state_dict["value"], state_dict["before"]
