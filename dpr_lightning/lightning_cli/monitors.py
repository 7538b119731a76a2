"""Check before the first step that the run logs the metrics that its callbacks monitor."""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from dpr_lightning.callbacks import BestPolicy, ResumableCheckpoints
from dpr_lightning.callbacks.periodic_evaluation import PeriodicEvaluation
from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules.base import PolicyModule
from dpr_lightning.trainer_attributes import callbacks_of

MONITORING = (BestPolicy, EarlyStopping, ModelCheckpoint, ResumableCheckpoints)
KNOWN = ("lightning.", "dpr_lightning.")
"""Packages whose callbacks log declared names only."""


def check_monitors(trainer: Trainer, module: Any, data: Any) -> None:
    """Refuse a monitored name that is never logged, which libraries notice hours later or not at all.

    Args:
        trainer: with its callbacks. A callback of another package may log any name; then nothing is checked.
        module: in training; only modules of this package declare what they log.
        data: its DataModule.

    Raises:
        InputError: names the callback, the nearest name, and all names.
    """
    callbacks: list[Any] = callbacks_of(trainer)
    known = all(type(callback).__module__.startswith(KNOWN) for callback in callbacks)
    if not isinstance(module, PolicyModule) or not known:
        return
    names = set(module.train_metrics)
    for callback in callbacks:
        if isinstance(callback, PeriodicEvaluation):
            names |= set(callback.metric_names())
    has_rows = isinstance(data, DemonstrationDataModule) and data.validation is not None
    if has_rows and trainer.limit_val_batches != 0:
        names |= set(module.validation_metrics)
    for callback in callbacks:
        monitor = callback.monitor if isinstance(callback, MONITORING) else None
        if monitor is None or any(fnmatchcase(monitor, name) for name in (*names, "epoch", "step")):
            continue
        kind = type(callback).__name__
        if monitor in module.validation_metrics:
            raise InputError(
                f"`trainer.callbacks`: {kind} monitors {monitor!r}, and this run has no validation. Set "
                "`data.validation` to a file or a share, and leave `trainer.limit_val_batches` above 0."
            )
        near = get_close_matches(monitor, names | set(module.validation_metrics), n=1, cutoff=0.4)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"`trainer.callbacks`: {kind} monitors {monitor!r}, which this run does not log.{meant} It logs "
            f"{', '.join(sorted(names))}."
        )
