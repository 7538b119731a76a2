"""Checkpoints that a run which was killed goes on from, to the bit."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ParallelStrategy

from dpr_lightning.callbacks.checkpoint_store import STATE, CheckpointStore
from dpr_lightning.callbacks.run_ends import (
    RunStopped,
    Stop,
    StopSignals,
    is_last_step,
    limit_time_of_process,
    reached_last_step,
    step_of_total,
    stopping_rules,
    time_is_up,
)
from dpr_lightning.callbacks.wandb_logger import wandb_run_ids
from dpr_lightning.data import PausingLoader
from dpr_lightning.data.template_clock import template_time
from dpr_lightning.distributed import mark, max_over_ranks
from dpr_lightning.errors import InputError
from dpr_lightning.folders import put_aside
from dpr_lightning.locking import LOCK
from dpr_lightning.paths import Writes
from dpr_lightning.trainer_attributes import is_trial

log = logging.getLogger(__name__)


class ResumableCheckpoints(Checkpoint):
    """Keeps the state of a run, and saves it when a scheduler, Ctrl-C or `trainer.max_time` stops the run.

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
        folder: Annotated[str, Writes("step_*", resumes=True)],
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
        self.step_options: dict[str, Any] = {}
        self.changed_options: list[str] = []
        self.begins_anew = False
        self._best: dict[int, float] = {}
        self._overdue = False
        self._signals = StopSignals()
        self._ended_by: dict[str, Any] | None = None
        self._logged_steps: int | None = None
        self._saved_logged_steps = 0
        self._began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a limit of time end the run here, after its state is saved."""
        limit_time_of_process(trainer, saved_at_stop=not is_trial(trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Be asked when a step is over and done."""
        # Every hook of Lightning comes before the step's metrics are logged and its validation is run.
        loop = trainer.fit_loop.epoch_loop
        inner = loop.on_advance_end

        def on_advance_end(data_fetcher: Any) -> None:
            inner(data_fetcher)
            self._after_batch(trainer)

        loop.on_advance_end = on_advance_end  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to a scheduler that wants the machine back; count epochs; have checkpoints and log as they were."""
        self._began = True
        if self.begins_anew:
            self._put_aside(trainer)
        if not is_trial(trainer):
            self._signals.listen(trainer.strategy.launcher, silent=not trainer.is_global_zero)
        if trainer.ckpt_path is None:
            return
        epochs = trainer.fit_loop.epoch_progress
        total: Any = epochs.total
        if total.processed == total.started:
            # Lightning closes the epoch that ended with the checkpoint and forgets to open the next.
            epochs.increment_ready()
            epochs.increment_started()
        if trainer.is_global_zero:
            self._restore_tables(trainer, Path(trainer.ckpt_path).parent)

    def _put_aside(self, trainer: Trainer) -> None:
        """Rename the checkpoints of an earlier run, now that data and policy are known to be good."""
        self.begins_anew = False
        folder = self.store.folder
        if not trainer.is_global_zero or not folder.exists() or all(path.name == LOCK for path in folder.iterdir()):
            return
        log.warning("The checkpoints of the run before are in %s now.", put_aside(folder, stays=(LOCK,)))

    def _restore_tables(self, trainer: Trainer, checkpoint: Path) -> None:
        for index, logger in enumerate(_tables(trainer)):
            saved = checkpoint / _table(index)
            if saved.is_file():
                _write_table(logger, saved.read_bytes())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Number logged steps as the interrupted run did: Lightning counts one twice where validation was due."""
        if self._logged_steps is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._logged_steps
            self._logged_steps = None

    def _after_batch(self, trainer: Trainer) -> None:
        """Save what is due; save and stop where a signal or the time asks for it.

        Raises:
            RunStopped: the run stops here.
        """
        if is_trial(trainer) or trainer.fit_loop._should_accumulate():
            return
        if is_last_step(trainer):
            # What is written at the end has to be there before a checkpoint says that the end was reached.
            return
        self._overdue |= trainer.global_step % self.every_n_steps == 0
        loader = trainer.train_dataloader
        if isinstance(loader, PausingLoader) and not loader.resumable:
            return
        stop = Stop(max_over_ranks(max(self._signals.received, Stop.TIME if time_is_up(trainer) else Stop.NO)))
        if self._overdue or stop:
            self._save(trainer)
        if stop:
            trainer.strategy.barrier("stop")
            reason = {
                Stop.TIME: "`trainer.max_time` is used up",
                Stop.SCHEDULER: "Asked to stop",
                Stop.CTRL_C: "Stopped by Ctrl-C",
            }[stop]
            if trainer.is_global_zero:
                log.warning("%s: %s is saved. The same command goes on from there.", reason, step_of_total(trainer))
            # Lightning's launcher takes another code than 0 from a rank that it started for a crash.
            strategy = trainer.strategy
            starts_ranks = isinstance(strategy, ParallelStrategy) and isinstance(
                strategy.cluster_environment, LightningEnvironment
            )
            child = starts_ranks and trainer.local_rank > 0
            raise RunStopped(stop, 0 if child else stop.exit_code)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, so that the same command once more does nothing."""
        if is_trial(trainer):
            return
        if not reached_last_step(trainer):
            self._ended_by = stopping_rules(trainer)
            log.warning("A callback ended the run at %s: it is finished.", step_of_total(trainer))
        self._save(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave a run that a callback ended as it is, while the same callback would end it."""
        states = checkpoint.get("callbacks", {})
        for callback in trainer.early_stopping_callbacks:
            if callback.state_key in states:  # options are what the command line says
                states[callback.state_key]["patience"] = callback.patience
        state = states.get(self.state_key, {})
        if state.get("ended_by") is not None and state["ended_by"] == stopping_rules(trainer):
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave Ctrl-C to others. Lightning ignores a further one while it handles the last."""
        if not isinstance(exception, KeyboardInterrupt):
            self._signals.restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave a finished run, of which nothing was left to do, with the log that it had."""
        self._signals.restore()
        if stage != "fit" or self._began or trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        ended = f" A callback ended it at {step_of_total(trainer)}." if trainer.should_stop else ""
        changed = f" It did not use {'; '.join(self.changed_options)}." if self.changed_options else ""
        log.warning("This run is finished: nothing was left to do.%s%s `--ckpt_path none` begins anew.", ended, changed)
        self._restore_tables(trainer, Path(trainer.ckpt_path).parent)
        # The run may have been killed between its last checkpoint and this.
        self._prune(max(self.store.steps()))

    def _save(self, trainer: Trainer) -> None:
        self._overdue = False
        step = trainer.global_step
        mark(f"checkpoint of step {step}")
        if self._ended_by is None and step in self.store.steps() and self.store.fault(step) is None:
            return
        started = time.monotonic()
        self._saved_logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped
        if self.monitor is not None and self.monitor in trainer.callback_metrics:
            self._best[step] = float(trainer.callback_metrics[self.monitor])
        try:
            if trainer.is_global_zero:
                self.store.begin(step)
            trainer.strategy.barrier("checkpoint begins")
            with _as_at_the_end_of_a_batch(trainer):
                trainer.save_checkpoint(self.store.unfinished(step) / STATE, weights_only=False)
            if trainer.is_global_zero:
                self._seal(trainer, step, started)
        except (OSError, RuntimeError) as error:
            # PyTorch reports a full disk as a RuntimeError.
            raise InputError(
                f"The checkpoint of step {step} could not be written to {self.store.folder}: {str(error)[:300]} "
                "Those before it stay. Free some space or choose another `folder`, and run the same command again."
            ) from error
        trainer.strategy.barrier("checkpoint stands")

    def _seal(self, trainer: Trainer, step: int, started: float) -> None:
        for index, logger in enumerate(_tables(trainer)):
            logger.save()
            metrics_file = Path(logger.experiment.metrics_file_path)
            if metrics_file.is_file():
                shutil.copyfile(metrics_file, self.store.unfinished(step) / _table(index))
        about = {
            "identity": self.identity,
            "step_options": self.step_options,
            "strategy": type(trainer.strategy).__name__,
            "ranks": trainer.world_size,
            "wandb_runs": wandb_run_ids(trainer),
            "template_time": template_time().isoformat(),
            "seconds": time.monotonic() - started,
        }
        self.store.finish(step, about)
        self._prune(step)

    def _prune(self, newest: int) -> None:
        # What is further on than the run is of no use to it: damaged, or of a course that was given up.
        stay = set([step for step in self.store.steps() if step <= newest][: self.retained])
        if self._best:
            pick = min if self.mode == "min" else max
            stay.add(pick(self._best, key=self._best.__getitem__))
        self.store.keep(stay)

    def state_dict(self) -> dict[str, Any]:
        """Which steps were how good, how many were logged, and by which rules a callback ended the run."""
        return {"best": dict(self._best), "logged_steps": self._saved_logged_steps, "ended_by": self._ended_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing and counting."""
        self._logged_steps = state_dict["logged_steps"]
        self._best = {int(step): float(value) for step, value in state_dict["best"].items()}


@contextmanager
def _as_at_the_end_of_a_batch(trainer: Trainer) -> Iterator[None]:
    """Within, the loop's progress is what it is in ``on_train_batch_end``, the place that Lightning goes on from well.

    From the place where a batch is wholly done it would train on one more batch of an epoch that is over.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.total.completed -= 1
    progress.current.completed -= 1
    yield
    progress.total.completed += 1
    progress.current.completed += 1


def _tables(trainer: Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _write_table(logger: CSVLogger, content: bytes) -> None:
    """Have a logger go on with a table as if it had written it."""
    writer = logger.experiment
    writer.metrics.clear()
    writer.metrics_keys = content.split(b"\n", 1)[0].decode().strip().split(",")
    Path(writer.metrics_file_path).write_bytes(content)


def _table(index: int) -> str:
    return f"metrics_{index}.csv"
