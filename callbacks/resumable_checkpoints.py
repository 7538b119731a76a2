"""Checkpoints that a run which was killed goes on from, to the bit."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from dpr_lightning.callbacks.checkpoint_store import STATE, CheckpointStore
from dpr_lightning.distributed import max_over_ranks
from dpr_lightning.errors import InputError

REQUEUE = 75
"""Exit code of a run that was asked to stop and can go on: EX_TEMPFAIL, "try again"."""


class ResumableCheckpoints(Checkpoint):
    """Keeps the state of a run, and saves it when a scheduler asks the run to stop.

    ``dpr fit`` finds these checkpoints by itself: run the same command again. Checkpoints lie between rollouts: where
    several optimizer steps share one, the next end of a rollout is waited for.

    Args:
        folder: takes ``step_0000040/`` and so on.
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest stay.
        monitor: name of a logged metric; the checkpoint that is best by it stays too.
        mode: whether the best has the smallest or the largest value.

    Raises:
        InputError: a checkpoint cannot be written. Those before it stay.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int = 100,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or keep < 1:
            raise InputError(f"`every_n_steps` and `keep` must be at least 1; found {every_n_steps} and {keep}.")
        self.store = CheckpointStore(folder)
        self.every_n_steps = every_n_steps
        self.retained = keep
        self.monitor, self.mode = monitor, mode
        self.identity: dict[str, Any] | None = None
        self._best: dict[int, float] = {}
        self._overdue = False
        self._stop = False
        self._logged_steps: int | None = None
        self._saved_logged_steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to a scheduler that wants the machine back, and be asked when a step is over and done."""
        # Every hook of Lightning comes before the step's metrics are logged and its validation is run.
        loop = trainer.fit_loop.epoch_loop
        inner = loop.on_advance_end

        def on_advance_end(data_fetcher: Any) -> None:
            inner(data_fetcher)
            self._after_batch(trainer)

        loop.on_advance_end = on_advance_end  # type: ignore[method-assign]
        launcher = trainer.strategy.launcher

        def asked(*_: Any) -> None:
            if not self._stop and launcher is not None:
                # Ranks that this process has started may not have been told.
                launcher.kill(signal.SIGTERM)
            self._stop = True

        signal.signal(signal.SIGTERM, asked)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the log of metrics back what it held when the checkpoint was written."""
        resumed = trainer.ckpt_path
        if resumed is None or not trainer.is_global_zero:
            return
        for place, logger in enumerate(_tables(trainer)):
            kept = Path(resumed).parent / _table(place)
            if not kept.is_file():
                continue
            writer = logger.experiment
            shutil.copyfile(kept, writer.metrics_file_path)
            with kept.open(encoding="utf-8") as lines:
                writer.metrics_keys = lines.readline().rstrip("\r\n").split(",")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Number logged steps as the interrupted run did: Lightning counts one twice where validation was due."""
        if self._logged_steps is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._logged_steps
            self._logged_steps = None

    def _after_batch(self, trainer: Trainer) -> None:
        """Save what is due; save and stop when a scheduler asks."""
        if trainer.fit_loop._should_accumulate():
            return
        self._overdue |= trainer.global_step % self.every_n_steps == 0
        if not getattr(trainer.train_dataloader, "resumable", True):
            return
        stop = bool(max_over_ranks(int(self._stop)))
        if self._overdue or stop:
            self._save(trainer)
        if stop:
            trainer.strategy.barrier("stop")
            started_here = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.local_rank > 0
            raise SystemExit(0 if started_here else REQUEUE)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, so that the same command once more does nothing."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._overdue = False
        step = trainer.global_step
        if step in self.store.steps():
            return
        started = time.monotonic()
        self._saved_logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
        if self.monitor is not None and self.monitor in trainer.callback_metrics:
            self._best[step] = float(trainer.callback_metrics[self.monitor])
        try:
            if trainer.is_global_zero:
                self.store.begin(step)
            trainer.strategy.barrier("checkpoint begins")
            trainer.save_checkpoint(self.store.unfinished(step) / STATE)
            if trainer.is_global_zero:
                self._seal(trainer, step, started)
        except (OSError, RuntimeError) as error:
            # PyTorch reports a full disk as a RuntimeError of its own.
            raise InputError(
                f"The checkpoint of step {step} could not be written to {self.store.folder}: {str(error)[:300]} "
                "Those before it stay. Free some space or choose another `folder`, and run the same command again."
            ) from error
        trainer.strategy.barrier("checkpoint stands")

    def _seal(self, trainer: Trainer, step: int, started: float) -> None:
        for place, logger in enumerate(_tables(trainer)):
            logger.save()
            written = Path(logger.experiment.metrics_file_path)
            if written.is_file():
                shutil.copyfile(written, self.store.unfinished(step) / _table(place))
        about = {"identity": self.identity, "ranks": trainer.world_size, "seconds": time.monotonic() - started}
        self.store.finish(step, about)
        stay = set(self.store.steps()[: self.retained])
        if self._best:
            pick = min if self.mode == "min" else max
            stay.add(pick(self._best, key=lambda held: self._best[held]))
        self.store.keep(stay)

    def state_dict(self) -> dict[str, Any]:
        """Which steps were how good, and how many were logged."""
        return {"best": dict(self._best), "logged_steps": self._saved_logged_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing and counting."""
        self._logged_steps = state_dict["logged_steps"]
        self._best = {int(step): float(value) for step, value in state_dict["best"].items()}


def _tables(trainer: Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _table(place: int) -> str:
    return f"metrics_{place}.csv"
