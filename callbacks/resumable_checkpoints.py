"""Checkpoints that a run which was killed goes on from, to the bit."""

import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from dpr_lightning.callbacks.checkpoint_store import STATE, CheckpointStore
from dpr_lightning.distributed import mark, max_over_ranks
from dpr_lightning.errors import REQUEUE, InputError

log = logging.getLogger(__name__)


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
        self._began = False

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
        """Listen to a scheduler that wants the machine back; count epochs and have the log of metrics as it was."""
        self._began = True
        self._listen(trainer)
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

    def _listen(self, trainer: Trainer) -> None:
        """Instead of Lightning's handler, which talks to other ranks from wherever the signal finds it."""
        launcher = trainer.strategy.launcher

        def asked(*_: Any) -> None:
            if not self._stop and launcher is not None:
                # Ranks that this process has started may not have been told.
                launcher.kill(signal.SIGTERM)
            self._stop = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, asked)

    def _restore_tables(self, trainer: Trainer, checkpoint: Path) -> None:
        for place, logger in enumerate(_tables(trainer)):
            kept = checkpoint / _table(place)
            if kept.is_file():
                _write_table(logger, kept.read_bytes())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Number logged steps as the interrupted run did: Lightning counts one twice where validation was due."""
        if self._logged_steps is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._logged_steps
            self._logged_steps = None

    def _after_batch(self, trainer: Trainer) -> None:
        """Save what is due; save and stop when a scheduler asks."""
        if trainer.fit_loop._should_accumulate():
            return
        if _is_last_step(trainer):
            # What is written at the end has to be there before a checkpoint says that the end was reached.
            return
        self._overdue |= trainer.global_step % self.every_n_steps == 0
        if not getattr(trainer.train_dataloader, "resumable", True):
            return
        stop = bool(max_over_ranks(int(self._stop)))
        if self._overdue or stop:
            self._save(trainer)
        if stop:
            trainer.strategy.barrier("stop")
            log.warning("Asked to stop: step %d is saved. The same command goes on.", trainer.global_step)
            # Lightning's launcher takes another code than 0 from a rank that it started for a crash.
            environment = getattr(trainer.strategy, "cluster_environment", None)
            child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
            raise SystemExit(0 if child else REQUEUE)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, so that the same command once more does nothing."""
        self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave a finished run, of which nothing was left to do, with the log that it had."""
        if stage != "fit" or self._began or trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        log.warning("This run is finished: nothing was left to do. `--ckpt_path none` begins anew.")
        self._restore_tables(trainer, Path(trainer.ckpt_path).parent)
        # The run may have been killed between its last checkpoint and this.
        self._prune(max(self.store.steps()))

    def _save(self, trainer: Trainer) -> None:
        self._overdue = False
        step = trainer.global_step
        mark(f"checkpoint of step {step}")
        if step in self.store.steps() and self.store.fault(step) is None:
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
        about = {
            "identity": self.identity,
            "strategy": type(trainer.strategy).__name__,
            "ranks": trainer.world_size,
            "seconds": time.monotonic() - started,
        }
        self.store.finish(step, about)
        self._prune(step)

    def _prune(self, newest: int) -> None:
        # What is further on than the run is of no use to it: damaged, or of a course that was given up.
        stay = set([step for step in self.store.steps() if step <= newest][: self.retained])
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


def _is_last_step(trainer: Trainer) -> bool:
    if trainer.global_step == trainer.max_steps:
        return True
    epochs = trainer.max_epochs
    if epochs is None or epochs < 0 or trainer.current_epoch + 1 < epochs:
        return False
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _tables(trainer: Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _write_table(logger: CSVLogger, content: bytes) -> None:
    """Have a logger go on with a table as if it had written it."""
    writer = logger.experiment
    writer.metrics.clear()
    writer.metrics_keys = content.split(b"\n", 1)[0].decode().strip().split(",")
    Path(writer.metrics_file_path).write_bytes(content)


def _table(place: int) -> str:
    return f"metrics_{place}.csv"
