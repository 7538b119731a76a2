"""Numbers of the trainer that Lightning accepts and that make no sense for any run."""

from collections.abc import Mapping
from typing import Any

from dpr_lightning.errors import InputError


def check_trainer(trainer: Mapping[str, Any], subcommand: str) -> None:
    """Refuse options that would train on nothing, divide by zero or follow gradients uphill.

    Args:
        trainer: options, resolved.
        subcommand: of LightningCLI.

    Raises:
        InputError: names the option.
    """
    clip, interval, epochs = (
        trainer.get(name) for name in ("gradient_clip_val", "val_check_interval", "check_val_every_n_epoch")
    )
    if clip is not None and clip < 0:
        raise InputError(
            f"trainer.gradient_clip_val: found {clip:g}. Gradients are scaled by it, and a negative one turns them "
            "round; 0 or null does not clip."
        )
    if isinstance(interval, (int, float)) and interval <= 0:
        raise InputError(
            f"trainer.val_check_interval: found {interval:g}; a number of micro-batches is at least 1, a share of an "
            "epoch above 0. Without validation: `trainer.limit_val_batches: 0`."
        )
    if epochs is not None and epochs < 1:
        raise InputError(
            f"trainer.check_val_every_n_epoch: found {epochs}; it is at least 1, or null where "
            "`trainer.val_check_interval` counts across epochs. Without validation: `trainer.limit_val_batches: 0`."
        )
    for name in ("limit_train_batches", "max_epochs") if subcommand == "fit" else ():
        if trainer.get(name) == 0:
            raise InputError(
                f"trainer.{name}: found 0, with which nothing is trained. Set it above 0, or leave it out."
            )
