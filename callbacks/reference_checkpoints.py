"""Keeps the checkpoints that a dense reward is measured against, as ordinary Hugging Face folders."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from dpr_lightning.callbacks.run_ends import RunStopped, Stop, can_end_early, step_of_total, stopped_by_time
from dpr_lightning.engine import is_sharded
from dpr_lightning.errors import InputError, counted
from dpr_lightning.folders import WRITTEN, delete_folder, whole_file
from dpr_lightning.partitioned_weights import shard_of
from dpr_lightning.paths import Writes
from dpr_lightning.policies import gathered_weights, save_policy
from dpr_lightning.trainer_attributes import is_trial

log = logging.getLogger(__name__)
INTERRUPTED = "interrupted"
"""Folder of the policy of a run that was stopped before its end."""
SPARES = 2
POLICIES = Writes("final", "ema", INTERRUPTED, "step_*", whole=True)
LISTED = ('"step_', '"final"', f'"{INTERRUPTED}"')
"""What references.json lists."""


class ReferenceCheckpoints(Callback):
    """Writes the policy at given fractions of the run, and at its end.

    The reward compares π_SFT with an earlier checkpoint of the same run. Which one is best is not known beforehand
    (earlier ones did better than the halfway one in our measurements), so several are kept.

    A run that `trainer.max_time` stops leaves ``interrupted`` instead of ``final``, until it has gone on to its end.
    Where EarlyStopping or a limit of time may end the run before a fraction is reached, the policies after the newest
    two steps that are powers of two are kept until then, so that there is a reference in any case.

    Args:
        folder: receives one folder a fraction, such as ``step_0000160``, ``final``, and ``references.json``, which
            lists them with their share of the run's steps.
        fractions: of the run's optimizer steps, in (0, 1). None of them falls on the last step, whose policy is π_SFT.
        ema_decay: also keep an exponential moving average of the trained weights, written as ``ema`` at the end; None
            keeps none.
        check: whether each folder is compared with the policy in memory before it replaces anything.
    """

    def __init__(
        self,
        folder: Annotated[str, POLICIES, Writes("references.json", marks=LISTED)],
        fractions: list[float] | None = None,
        ema_decay: float | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        self.check = check
        self.folder = Path(folder)
        self.fractions = sorted(fractions if fractions is not None else [0.25, 0.5, 0.75])
        self.ema_decay = ema_decay
        self.written: dict[str, float] = {}
        self._average: dict[str, Tensor] = {}
        self._due: dict[int, float] = {}
        self._total: float = 0
        self._spares: list[str] = []
        if any(not 0 < fraction < 1 for fraction in self.fractions):
            raise InputError(f"`fractions` lie strictly between 0 and 1; found {self.fractions}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Work out at which steps checkpoints are due.

        Raises:
            InputError: the run has no end that fractions could be taken of.
        """
        self._total = trainer.estimated_stepping_batches
        endless = self._total == float("inf")
        if endless and self.fractions:
            raise InputError(
                "Reference checkpoints lie at fractions of the run, and this one has no end. Set `trainer.max_steps` "
                "or `trainer.max_epochs`, or `run.references` (`fractions` of ReferenceCheckpoints) to []."
            )
        self._due = {}
        if trainer.ckpt_path is None and not is_trial(trainer) and trainer.is_global_zero:
            self._report_earlier_run()
        if endless:
            return
        total = int(self._total)
        if total < 2:
            log.warning("A run of %s has no earlier checkpoint to serve as reference.", counted(total, "step"))
            return
        for fraction in self.fractions:
            step = min(max(1, round(fraction * total)), total - 1)
            if step in self._due:
                log.warning("Fractions %g and %g of %d steps are one checkpoint.", self._due[step], fraction, total)
            self._due.setdefault(step, fraction)

    def _report_earlier_run(self) -> None:
        """Name the policies that are there although the run begins: some are replaced, the rest stay as they are."""
        earlier = sorted(path.parent.name for path in self.folder.glob(f"*/{WRITTEN}"))
        if earlier:
            log.warning(
                "%s has policies of an earlier run (%s): each stays until this one writes a policy of its name, and "
                "references.json lists those of this one alone.",
                self.folder,
                ", ".join(earlier),
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: update the average, write a checkpoint that is due."""
        if trainer.fit_loop._should_accumulate():
            return
        step = trainer.global_step
        if self.ema_decay is not None:
            self._update_average(pl_module, self.ema_decay)
        if is_trial(trainer):
            return
        name = f"step_{step:07d}"
        if step in self._due:
            if name not in self.written or name in self._spares:
                self._write(trainer, pl_module, name, self._due[step])
            self._spares = [spare for spare in self._spares if spare != name]
            self._drop_spares(trainer, 0)
        elif can_end_early(trainer) and step < min(self._due, default=0) and step & (step - 1) == 0:
            if name not in self._spares:
                self._spares.append(name)
            self._write(trainer, pl_module, name, step / self._total)
            self._drop_spares(trainer, SPARES)

    def _drop_spares(self, trainer: Trainer, count: int) -> None:
        """Delete the policies that stand in for a reference, except the newest ``count``."""
        while len(self._spares) > count:
            name = self._spares.pop(0)
            self.written.pop(name, None)
            if trainer.is_global_zero:
                delete_folder(self.folder / name)
                self._list()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end of the run, and its average."""
        if is_trial(trainer):
            return
        if stopped_by_time(trainer):
            self._write_interrupted(trainer, pl_module)
            return
        if trainer.global_step < self._total:
            self._end_early(trainer)
        self._write(trainer, pl_module, "final", 1.0)
        if self._average:
            with self._averaged(pl_module):
                self._write(trainer, pl_module, "ema", 1.0)
        if trainer.is_global_zero:
            delete_folder(self.folder / INTERRUPTED)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the policy so far where the time of this process is used up; a signal leaves no time for it."""
        if isinstance(exception, RunStopped) and exception.reason is Stop.TIME:
            self._write_interrupted(trainer, pl_module)

    def _write_interrupted(self, trainer: Trainer, module: LightningModule) -> None:
        self._write(trainer, module, INTERRUPTED, trainer.global_step / self._total)
        del self.written[INTERRUPTED]  # no part of the checkpoint that the run goes on from
        if trainer.is_global_zero:
            log.warning("The policy of %s is in %s.", step_of_total(trainer), self.folder / INTERRUPTED)

    def _end_early(self, trainer: Trainer) -> None:
        """Give what was written its share of the steps that there were, and say where no reference is among it."""
        last = trainer.global_step
        steps = {name: int(name.removeprefix("step_")) for name in self.written if name.startswith("step_")}
        self.written |= {name: step / last for name, step in steps.items()}
        earlier = sorted(name for name, step in steps.items() if step < last and (self.folder / name).is_dir())
        missed = [step for step in self._due if step > last]
        if not missed or not trainer.is_global_zero:
            return
        reference = (
            f"{earlier[-1]} ({self.written[earlier[-1]]:.3g} of it) can serve as reference."
            if earlier
            else "No earlier policy was written, and a dense reward needs one: train anew with smaller `fractions` of "
            "ReferenceCheckpoints, or a `trainer.max_steps` that is reached."
        )
        log.warning(
            "The run ended at %s, before %s due. %s",
            step_of_total(trainer),
            f"the reference of step {missed[0]} was"
            if len(missed) == 1
            else f"the references of steps {', '.join(map(str, missed))} were",
            reference,
        )

    def _write(self, trainer: Trainer, module: LightningModule, name: str, fraction: float) -> None:
        self.written[name] = fraction
        write_policy(trainer, module, self.folder / name, check=self.check)
        if trainer.is_global_zero:
            self._list()

    def _list(self) -> None:
        with whole_file(self.folder / "references.json") as stream:
            stream.write(json.dumps(self.written, indent=2) + "\n")

    @torch.no_grad()
    def _update_average(self, module: LightningModule, decay: float) -> None:
        weights = _trained(module)
        if not self._average:
            self._average = {name: value.float().clone() for name, value in weights.items()}
        for name, value in weights.items():
            average = self._average[name] = _placed_like(value, self._average[name])
            average.lerp_(value.float(), 1.0 - decay)

    @contextmanager
    def _averaged(self, module: LightningModule) -> Iterator[None]:
        """Within, the policy has its averages for weights."""
        weights = _trained(module)
        trained_values = {name: value.clone() for name, value in weights.items()}
        _put(weights, self._average)
        yield
        _put(weights, trained_values)

    def state_dict(self) -> dict[str, Any]:
        """What was written so far, and the average."""
        # FSDP2 keeps the state of callbacks once, and not for each rank as DeepSpeed does.
        whole = {
            name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in self._average.items()
        }
        return {"written": dict(self.written), "average": whole, "spares": list(self._spares)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the interrupted run stopped."""
        self.written = dict(state_dict["written"])
        self._average = dict(state_dict["average"])
        self._spares = list(state_dict.get("spares", []))


def write_policy(trainer: Trainer, module: LightningModule, folder: Path, *, check: bool) -> None:
    """Write the policy of a module to a folder; called on all ranks, rank 0 writes."""
    learner: Any = module
    policy = learner.policy
    weights = gathered_weights(policy, keep=trainer.is_global_zero) if is_sharded(policy) else None
    if trainer.is_global_zero:
        save_policy(policy, learner.tokenizer, folder, learner.policy_spec, weights=weights, check=check)
    trainer.strategy.barrier(f"policy {folder.name}")


def _trained(module: LightningModule) -> dict[str, Tensor]:
    """Every trained parameter, or this rank's shard of it under ZeRO-3.

    A frozen one, such as an adapter's base, is its own average.
    """
    policy: Any = module.policy
    trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    return {name: shard_of(value).detach() for name, value in trained.items()}


def _placed_like(weight: Tensor, value: Tensor) -> Tensor:
    """A value on the device of a weight, and cut up as FSDP2 has cut that up."""
    if isinstance(weight, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value.to(weight.device)


@torch.no_grad()
def _put(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
