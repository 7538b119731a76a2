"""``dpr fit|validate|test|predict``: LightningCLI, with its traps taken out."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


class DprCLI(LightningCLI):
    """Reads configs; ``class_path`` in them picks module, data, strategy and callbacks."""

    def _parse_ckpt_path(self) -> None:
        """Leave hyper-parameters alone: what the command line says wins over what a checkpoint remembers."""


def run_lightning(arguments: Sequence[str]) -> Any:
    """Run one LightningCLI command."""
    return DprCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=list(arguments),
        parser_kwargs={"prog": "dpr"},
    )
