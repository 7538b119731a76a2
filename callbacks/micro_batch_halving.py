"""Goes on with smaller micro-batches where the memory of a GPU did not suffice."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dpr_lightning.data import PolicyDataModule
from dpr_lightning.errors import InputError, TryAgain, causes, first_line
from dpr_lightning.trainer_attributes import datamodule_of

log = logging.getLogger(__name__)
RECORD = "micro_batches.json"


class MicroBatchHalving(Callback):
    """Cuts every micro-batch in two, and in two again, until a step fits into the memory of the GPU.

    A step stays what it was: the same rows, in more and smaller parts, whose gradients add up. What
    else is computed in parts (sampling, scoring) takes smaller ones too. The run goes on from its last checkpoint, by
    itself where it is one process; of several ranks the one that ran out ends with exit code 75, and the same command
    goes on. ``micro_batches.json`` in the run's folder remembers it; delete the file where there is more memory.

    Args:
        limit: how often micro-batches are halved before the run ends with the error.

    Raises:
        TryAgain: memory ran out, and the next run will take less.
    """

    def __init__(self, limit: int = 4) -> None:
        if limit < 1:
            raise InputError(f"`limit` is how often micro-batches may be halved, at least once; found {limit}.")
        self.limit = limit
        self.parts = 1
        """Into how many each micro-batch is cut."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Cut as the runs before found necessary."""
        if stage != "fit":
            return
        record = Path(trainer.default_root_dir) / RECORD
        self.parts = int(json.loads(record.read_text())["parts"]) if record.is_file() else 1
        if self.parts == 1:
            return
        log.warning("Micro-batches are cut into %d parts; %s says so.", self.parts, record)
        trainer.accumulate_grad_batches *= self.parts
        # What the trainer counts in micro-batches.
        if isinstance(trainer.limit_train_batches, int):
            trainer.limit_train_batches *= self.parts
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval *= self.parts
        data = datamodule_of(trainer)
        if not isinstance(data, PolicyDataModule):
            raise InputError(
                f"{RECORD} cuts micro-batches into {self.parts} parts, which {type(data).__name__} cannot do. Delete "
                f"{record} and lower the batch size, or take MicroBatchHalving out of `trainer.callbacks`."
            )
        data.split_micro_batches(self.parts)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the micro-batches of an interrupted epoch in the parts of today; checkpoints lie between steps."""
        before = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("parts", 1)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            started = counts["ready"]
            for name, count in counts.items():
                counts[name] = started * self.parts // before - (started - count)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remember to take less, and ask for another run."""
        if trainer.train_dataloader is None or not trainer.training:
            return  # the model alone is too large, or what is validated at once
        if not any(isinstance(cause, torch.OutOfMemoryError) for cause in causes(exception)):
            return
        parts = 2 * self.parts
        if parts > 2**self.limit:
            log.warning("Micro-batches are in %d parts already, as many as `limit` allows.", self.parts)
            return
        (Path(trainer.default_root_dir) / RECORD).write_text(json.dumps({"parts": parts}) + "\n")
        raise TryAgain(
            f"{first_line(exception)}\nThe next run cuts every micro-batch into {parts} parts ({RECORD}).",
            alone=trainer.world_size == 1,
        ) from exception

    def state_dict(self) -> dict[str, Any]:
        """The parts that batches are counted in."""
        return {"parts": self.parts}
