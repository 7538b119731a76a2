"""Attributes that Lightning sets on a Trainer without declaring them, with their types."""

from typing import Any, cast

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a run; a change of the list changes the run's."""
    callbacks: list[Callback] = cast(Any, trainer).callbacks
    return callbacks


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """The DataModule of a run; None where it reads bare loaders."""
    datamodule: LightningDataModule | None = cast(Any, trainer).datamodule
    return datamodule


def is_trial(trainer: Trainer) -> bool:
    """Whether the run is `trainer.fast_dev_run`, which saves nothing."""
    return bool(cast(Any, trainer).fast_dev_run)
