"""Why a run stops before its last step, and whether it goes on: signals, a limit of time, a callback's decision."""

import logging
import os
import signal
import threading
import time
from datetime import timedelta
from enum import IntEnum
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies.launchers.launcher import _Launcher

from dpr_lightning.errors import INTERRUPTED, REQUEUE
from dpr_lightning.trainer_attributes import callbacks_of

log = logging.getLogger(__name__)
SAME_PRESS_S = 1.0
"""A launcher forwards Ctrl-C to processes that the terminal has already sent it to: signals this near are one."""


class Stop(IntEnum):
    """What asks a run to stop and to go on later. Of what different ranks received, the largest counts."""

    NO = 0
    TIME = 1
    SCHEDULER = 2
    CTRL_C = 3

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, otherwise 75, on which a batch script hands the job back."""
        return INTERRUPTED if self is Stop.CTRL_C else REQUEUE


class RunStopped(SystemExit):
    """Raised on all ranks at the end of a step, after the state was saved: the same command goes on.

    Args:
        reason: what asked for it.
        code: of this process.
    """

    def __init__(self, reason: Stop, code: int) -> None:
        super().__init__(code)
        self.reason = reason


class StopSignals:
    """Notes SIGTERM and the first Ctrl-C, so that the step ends and is saved; the second Ctrl-C ends at once.

    Attributes:
        received: what this process was asked by.
    """

    def __init__(self) -> None:
        self.received = Stop.NO
        self._pressed_s: float | None = None
        self._silent = False
        self._launcher: _Launcher | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self, launcher: _Launcher | None, *, silent: bool) -> None:
        """Handle signals instead of Lightning, which talks to other ranks from wherever a signal arrives.

        Args:
            launcher: of further ranks on this machine.
            silent: this is not the rank that writes messages.
        """
        self._launcher, self._silent = launcher, silent
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTERM, self._on_sigterm), (signal.SIGINT, self._on_sigint)):
                self._handlers[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Leave Ctrl-C to the handler before; Lightning restores SIGTERM's itself."""
        if (handler := self._handlers.pop(signal.SIGINT, None)) is not None:
            signal.signal(signal.SIGINT, handler)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self.received is Stop.NO and self._launcher is not None:
            # Schedulers do not always signal the ranks that this process started.
            self._launcher.kill(signal.SIGTERM)
        self.received = max(self.received, Stop.SCHEDULER)

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._pressed_s is not None and now - self._pressed_s > SAME_PRESS_S:
            raise KeyboardInterrupt
        if self._pressed_s is None:
            self._pressed_s = now
            self.received = Stop.CTRL_C
            if not self._silent:  # not through a stream, which the interrupted code may be writing to
                os.write(2, b"\nCtrl-C: the run saves and stops after this step. Again: it stops at once.\n")


class TimeLimit(Timer):
    """`trainer.max_time`, counted from the start of this process: the same command has as much time again."""

    saved_at_stop = False
    """Whether ResumableCheckpoints ends the run when the time is up, after it has saved."""
    stopped_run = False
    """Whether this ended the run, without a checkpoint to go on from."""

    @property
    def is_up(self) -> bool:
        """Whether no time is left."""
        remaining = self.time_remaining()
        return remaining is not None and remaining <= 0

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the run is to stop after this step: an interval of epochs waits for the last one of the epoch."""
        return self.is_up and (self._interval == "step" or trainer.fit_loop.epoch_loop._num_ready_batches_reached())

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop the run, unless checkpoints do so after they have saved."""
        if self.saved_at_stop:
            return
        before = trainer.should_stop
        super().on_train_batch_end(trainer, *args, **kwargs)
        self.stopped_run |= trainer.should_stop and not before

    def on_train_epoch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """As after a batch."""
        if self.saved_at_stop:
            return
        before = trainer.should_stop
        super().on_train_epoch_end(trainer, *args, **kwargs)
        self.stopped_run |= trainer.should_stop and not before

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that nothing is saved to go on from."""
        super().on_train_end(trainer, pl_module)
        self.stopped_run &= not reached_last_step(trainer)
        if self.stopped_run:
            log.warning("`trainer.max_time` is used up at %s. %s", step_of_total(trainer), how_to_go_on_next_time())

    def state_dict(self) -> dict[str, Any]:
        """Nothing: time is no part of a checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def limit_time_of_process(trainer: Trainer, *, saved_at_stop: bool) -> None:
    """Replace Lightning's timers, whose checkpoints remember the time that was used up before.

    Args:
        trainer: with its callbacks.
        saved_at_stop: the run has ResumableCheckpoints, which ask :func:`time_is_up` after each step.
    """
    callbacks: list[Any] = callbacks_of(trainer)
    for index, callback in enumerate(callbacks):
        if isinstance(callback, Timer) and not isinstance(callback, TimeLimit):
            seconds = callback.time_remaining()
            duration = None if seconds is None else timedelta(seconds=seconds)
            callbacks[index] = TimeLimit(duration, callback._interval, callback._verbose)
        if isinstance(callbacks[index], TimeLimit):
            callbacks[index].saved_at_stop = saved_at_stop


def time_is_up(trainer: Trainer) -> bool:
    """Whether a limit of time ends the run after this step."""
    callbacks: list[Any] = callbacks_of(trainer)
    return any(isinstance(callback, TimeLimit) and callback.is_due(trainer) for callback in callbacks)


def stopped_by_time(trainer: Trainer) -> bool:
    """Whether a limit of time has ended the run without a checkpoint to go on from."""
    callbacks: list[Any] = callbacks_of(trainer)
    return any(isinstance(callback, TimeLimit) and callback.stopped_run for callback in callbacks)


def can_end_early(trainer: Trainer) -> bool:
    """Whether the config names something that may end the run before its last step."""
    callbacks: list[Any] = callbacks_of(trainer)
    return any(isinstance(callback, (EarlyStopping, Timer)) for callback in callbacks)


def reached_last_step(trainer: Trainer) -> bool:
    """Whether `trainer.max_steps` or `trainer.max_epochs` are done with."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    epochs = trainer.max_epochs
    progress: Any = trainer.fit_loop.epoch_progress.current
    return epochs is not None and 0 <= epochs <= int(progress.processed)


def is_last_step(trainer: Trainer) -> bool:
    """Whether no step follows the one that has just been taken: the last of the run, or a callback has said stop."""
    if trainer.global_step == trainer.max_steps:
        return True
    if trainer.should_stop and trainer.fit_loop._can_stop_early:
        return True
    epochs = trainer.max_epochs
    if epochs is None or epochs < 0 or trainer.current_epoch + 1 < epochs:
        return False
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def stopping_rules(trainer: Trainer) -> dict[str, Any]:
    """What decides when a run ends. A run that a callback ended stays ended while these are the same."""
    rules: dict[str, Any] = {
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
        "min_steps": trainer.min_steps,
        "min_epochs": trainer.min_epochs,
    }
    for callback in trainer.early_stopping_callbacks:
        rules[callback.state_key] = {
            "monitor": callback.monitor,
            "mode": callback.mode,
            "patience": callback.patience,
            "min_delta": callback.min_delta,
            "stopping_threshold": callback.stopping_threshold,
            "divergence_threshold": callback.divergence_threshold,
        }
    return rules


def step_of_total(trainer: Trainer) -> str:
    """``step 198 of 30,000``; without the total where there is none."""
    total = trainer.estimated_stepping_batches
    return f"step {trainer.global_step:,}" + (f" of {int(total):,}" if total != float("inf") else "")


def how_to_go_on_next_time() -> str:
    """What to say where a run has no ResumableCheckpoints."""
    return (
        "This run saves no checkpoints, so the same command begins anew. With "
        "`--run.resume_every_n_steps 50 --trainer.enable_checkpointing true` it goes on."
    )
