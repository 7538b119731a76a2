"""One rank of a training run under some strategy: ``python -m tests.strategies.worker STRATEGY FOLDER CASE...``.

The processes of a run find one another through the variables that torchrun sets. Several cases run one after the
other, for starting a process takes longer than any of them. Rank 0 writes, for each case, what the test compares.
"""

import json
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback
from safetensors.torch import save_file

from dpr_lightning.data import DemonstrationDataModule, DemonstrationLoader, RewardDataModule
from dpr_lightning.data.batching import TokenBudgetBatchSampler
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, ScheduleSpec, SupervisedIRL
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.strategies import Fsdp2Strategy, Zero1Strategy, Zero2Strategy, Zero3Strategy
from tests.training import Metrics, quiet_trainer

# A tiny model would otherwise never be cut up.
ZERO = {"bucket_size": 5000}
STRATEGIES: dict[str, Any] = {
    "one": lambda: "auto",
    "ddp": lambda: "ddp",
    "zero1": lambda: Zero1Strategy(**ZERO),
    "zero2": lambda: Zero2Strategy(**ZERO),
    "zero3": lambda: Zero3Strategy(**ZERO, persistence_threshold=0),
    "fsdp2": Fsdp2Strategy,
    "zero3_asked_in_shards": lambda: Zero3Strategy(**ZERO, persistence_threshold=0, sampling_weights="shards"),
    "fsdp2_asked_in_shards": lambda: Fsdp2Strategy(sampling_weights="shards"),
}
# Adam would hide a wrong scale of the gradient, and make much of rounding where gradients are tiny.
OPTIMIZER = partial(torch.optim.SGD, lr=0.3, momentum=0.9)
SCHEDULE = ScheduleSpec(kind="linear", warmup_fraction=0.2)


class MaskedDemonstrations(DemonstrationDataModule):
    """Demonstrations of which one has nothing to learn; a process that is alone reads those of two ranks in turn."""

    def train_dataloader(self) -> Any:
        """Batches of a row each."""
        loader = super().train_dataloader()
        return Masked([loader] if self.trainer.world_size == 2 else [self._share(loader, rank) for rank in (0, 1)])

    def _share(self, loader: DemonstrationLoader, rank: int) -> DemonstrationLoader:
        content, data = loader.batches, loader.dataset
        accumulate = content.accumulate // 2
        batches = TokenBudgetBatchSampler(
            content.lengths, data.acted_tokens, batch_size=1, rank=rank, world_size=2, accumulate=accumulate
        )
        return DemonstrationLoader(data, batches, loader.pad)


class Masked:
    """Batches of several loaders in turn, without what one of the rows teaches."""

    def __init__(self, loaders: list[DemonstrationLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        """Batches of all loaders."""
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Any]:
        """An epoch."""
        for together in zip(*self.loaders, strict=True):
            for batch in together:
                yield batch._replace(mask=batch.mask & (batch.row != 3).unsqueeze(1))


class Dtypes(Callback):
    """What the numbers beside the tokens arrive as."""

    def __init__(self) -> None:
        self.dtypes: dict[str, str] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the dtypes."""
        content = {name: value for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
        self.dtypes |= {name: str(value.dtype) for name, value in content.items() if value.is_floating_point()}


class BreaksOnce(SupervisedIRL):
    """One micro-batch, so one rank's, has a loss that is no number."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """As ever, but for the row and the step."""
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.global_step == 1 and batch_idx % 2 else loss


def sft(folder: Path, scale: int, kind: type[SupervisedIRL] = SupervisedIRL) -> tuple[Any, Any, int]:
    """Uneven lengths; an epoch's last step has fewer micro-batches than the others."""
    policy = PolicySpec(source=str(folder / "policy"))
    module = kind(policy, optimizer=OPTIMIZER, schedule=SCHEDULE, non_finite="skip")
    data = MaskedDemonstrations(str(folder / "rows.jsonl"), batch_size=1, cache_dir=str(folder / "cache"))
    return module, data, 7


def dpr(folder: Path, scale: int, **options: Any) -> tuple[Any, Any, int]:
    """Rollouts that serve two steps each."""
    module = DensePathReinforce(
        PolicySpec(source=str(folder / "policy")),
        "reinforce",
        credit=CreditSpec(discount=0.9, baseline="position"),
        kl=KLSpec(coefficient=0.5, target=0.05),
        optimizer=OPTIMIZER,
        schedule=SCHEDULE,
    )
    data = RewardDataModule(
        str(folder / "rows.jsonl"),
        str(folder / "policy"),
        [str(folder / "reference")],
        RewardSpec("one_sided_centred", position_zscore=options.get("zscore", False)),
        SamplingOptions(9, batch_size=options.get("at_once", 512)),
        samples_per_prompt=options.get("samples", 2),
        prompts_per_rollout=6,
        refresh_every=options.get("refresh_every", 2),
        token_budget=options.get("token_budget"),
        frozen_weights=options.get("frozen_weights", "whole"),
        draw_ahead=options.get("draw_ahead"),
    )
    return module, data, 4


CASES: dict[str, Any] = {
    "sft": sft,
    "sft_broken": partial(sft, kind=BreaksOnce),
    "dpr": dpr,
    "dpr_one_sample": partial(dpr, samples=1, refresh_every=1),
    "dpr_ahead": partial(dpr, samples=1, refresh_every=1, draw_ahead="same"),
    # One answer and a few rows at a time: ranks need different numbers of passes.
    "dpr_frozen_in_shards": partial(dpr, frozen_weights="shards", at_once=1, token_budget=33, zscore=True),
}


def run(strategy: str, folder: Path, name: str) -> None:
    """Train, and let rank 0 write losses and weights. ``name`` is a case and the micro-batches of a step: ``sft:3``.

    ``sft:3:unclipped`` leaves gradients as they are, ``sft:3:bf16`` computes in bfloat16 on float32 weights.
    """
    case, accumulate, *options = name.split(":")
    world = 1 if strategy == "one" else 2
    lightning.seed_everything(0, verbose=False)
    module, data, steps = CASES[case](folder, int(accumulate))
    metrics, dtypes = Metrics(), Dtypes()
    trainer = quiet_trainer(
        folder / "root",
        strategy=STRATEGIES[strategy](),
        devices=world,
        max_steps=steps,
        max_epochs=-1,
        # A step is cut into as many micro-batches whatever the number of ranks.
        accumulate_grad_batches=int(accumulate) * 2 // world,
        gradient_clip_val=None if "unclipped" in options else 0.5,
        callbacks=[metrics, dtypes],
        use_distributed_sampler=False,
        precision="bf16-mixed" if "bf16" in options else "32-true",
    )
    trainer.fit(module, datamodule=data)
    with module.full_policy() as policy:
        weights = {name: value.detach().float().contiguous() for name, value in _whole(policy)}
        if trainer.is_global_zero:
            output = folder / strategy
            output.mkdir(exist_ok=True)
            save_file(weights, output / f"{name}.safetensors")
            content = {"steps": metrics.steps, "dtypes": dtypes.dtypes}
            (output / f"{name}.json").write_text(json.dumps(content))
    trainer.strategy.barrier("worker")


def _whole(policy: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in policy.named_parameters():
        yield name, value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("dpr_lightning").setLevel(logging.INFO)
    for case in sys.argv[3:]:
        run(sys.argv[1], Path(sys.argv[2]), case)
