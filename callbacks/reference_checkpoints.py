"""Keeps the checkpoints that a dense reward is measured against, as ordinary Hugging Face folders."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dpr_lightning.errors import InputError
from dpr_lightning.policies import save_policy


class ReferenceCheckpoints(Callback):
    """Writes the policy at given fractions of the run, and at its end.

    The reward compares π_SFT with an earlier checkpoint of the same run. Which one is best is not known beforehand
    (earlier ones did better than the halfway one in our measurements), so several are kept.

    Args:
        folder: receives one folder a fraction, such as ``step_0000160``, ``final``, and ``references.json``, which
            lists them.
        fractions: of the run's optimizer steps, in (0, 1).
        ema_decay: also keep an exponential moving average of the trained weights, written as ``ema`` at the end; None
            keeps none.
    """

    def __init__(self, folder: str, fractions: list[float] | None = None, ema_decay: float | None = None) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.fractions = sorted(fractions if fractions is not None else [0.25, 0.5, 0.75])
        self.ema_decay = ema_decay
        self.written: dict[str, float] = {}
        self._average: dict[str, Tensor] = {}
        self._due: dict[int, float] = {}
        if any(not 0 < fraction < 1 for fraction in self.fractions):
            raise InputError(f"`fractions` lie strictly between 0 and 1; found {self.fractions}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Work out at which steps checkpoints are due."""
        total = int(trainer.estimated_stepping_batches)
        self._due = {max(1, round(fraction * total)): fraction for fraction in self.fractions}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: update the average, write a checkpoint that is due."""
        if trainer.fit_loop._should_accumulate():
            return
        step = trainer.global_step
        if self.ema_decay is not None:
            self._update_average(pl_module, self.ema_decay)
        name = f"step_{step:07d}"
        if step in self._due and name not in self.written:
            self._write(trainer, pl_module, name, self._due[step])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end of the run, and its average."""
        self._write(trainer, pl_module, "final", 1.0)
        if self._average:
            self._write(trainer, pl_module, "ema", 1.0, self._average)

    def _write(
        self,
        trainer: Trainer,
        module: LightningModule,
        name: str,
        fraction: float,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.written[name] = fraction
        if trainer.is_global_zero:
            save_policy(
                module.policy,  # type: ignore[arg-type]
                module.tokenizer,  # type: ignore[arg-type]
                self.folder / name,
                module.policy_spec,  # type: ignore[arg-type]
                state_dict=weights,
            )
            (self.folder / "references.json").write_text(json.dumps(self.written, indent=2) + "\n")
        trainer.strategy.barrier(f"reference {name}")

    @torch.no_grad()
    def _update_average(self, module: LightningModule, decay: float) -> None:
        weights = module.policy.state_dict()  # type: ignore[union-attr]
        if not self._average:
            self._average = {name: value.detach().float().clone() for name, value in weights.items()}
        for name, value in weights.items():
            self._average[name].lerp_(value.detach().float(), 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """What was written so far, and the average."""
        return {"written": dict(self.written), "average": dict(self._average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the interrupted run stopped."""
        self.written = dict(state_dict["written"])
        self._average = dict(state_dict["average"])
