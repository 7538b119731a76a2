"""A step whose gradient is not finite changes nothing, and says which rows it was made of."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback

from dpr_lightning.data import DemonstrationDataModule, RewardDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import DensePathReinforce, SupervisedIRL
from dpr_lightning.modules.dpr import KLSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch, Rollouts
from tests.modules.conftest import weights
from tests.training import write_demonstrations, write_prompts, write_weaker_policy

Trainers = Callable[..., lightning.Trainer]


class Breaking(SupervisedIRL):
    """Gives gradients of NaN in the steps named."""

    broken_steps: tuple[int, ...] = ()
    broken_loss = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step not in self.broken_steps:
            return loss
        return loss * math.nan if self.broken_loss else loss * math.inf


class Weights(Callback):
    """Keeps the weights before every step, and after the last."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.held.append(weights(pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.held.append(weights(pl_module))


def _data(tmp_path: Path, policy: Path) -> DemonstrationDataModule:
    rows = write_demonstrations(tmp_path / "rows.jsonl", 24)
    return DemonstrationDataModule(rows, tokenizer=str(policy), batch_size=4, cache_dir=None, validation=None)


def _module(policy: Path, **options: Any) -> Breaking:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)

    return Breaking(PolicySpec(source=str(policy)), optimizer=optimizer, **options)


def test_a_skipped_step_changes_no_weight(tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path) -> None:
    saved, module = Weights(), _module(tiny_policy_folder, non_finite="skip")
    module.broken_steps = (1, 3)
    run = trainer(max_steps=5, callbacks=[saved], gradient_clip_val=1.0)
    run.fit(module, datamodule=_data(tmp_path, tiny_policy_folder))
    same = [bool((before == after).all()) for before, after in zip(saved.held, saved.held[1:], strict=False)]
    assert same == [False, True, False, True, False]
    assert float(run.callback_metrics["train/skipped_steps"]) == 2
    lines = [json.loads(line) for line in (tmp_path / "non_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]
    # The rows themselves are sound: the gradient broke on the way back.
    assert [len(line["rows"]) for line in lines] == [4, 4]
    assert all(row["not_finite"] == [] for line in lines for row in line["rows"])
    assert all(row["row"].startswith(str(tmp_path / "rows.jsonl:")) for line in lines for row in line["rows"])


def test_the_moments_of_the_optimizer_never_saw_a_skipped_step(
    tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    module = _module(tiny_policy_folder, non_finite="skip")
    module.broken_steps, module.broken_loss = (1,), True
    run = trainer(max_steps=3)
    run.fit(module, datamodule=_data(tmp_path, tiny_policy_folder))
    states = list(run.optimizers[0].state.values())
    assert {int(state["step"]) for state in states} == {2}
    assert all(state["exp_avg"].isfinite().all() for state in states)


def test_the_run_stops_with_the_weights_of_the_step_before(
    tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    saved, module = Weights(), _module(tiny_policy_folder)
    module.broken_steps = (2,)
    with pytest.raises(InputError, match=r"After step 2 .* inf|After step 2 .* nan") as error:
        trainer(max_steps=5, callbacks=[saved]).fit(module, datamodule=_data(tmp_path, tiny_policy_folder))
    assert "non_finite: skip" in str(error.value)
    assert (weights(module) == saved.held[2]).all()
    assert weights(module).isfinite().all()


def test_rows_of_a_step_without_gradients_are_not_held_against_the_next(
    tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    class Silent(Breaking):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            if self.global_step == 0:
                self.zero_grad()
            super().on_before_optimizer_step(optimizer)

    module = Silent(PolicySpec(source=str(tiny_policy_folder)), non_finite="skip")
    module.broken_steps = (1,)
    trainer(max_steps=2).fit(module, datamodule=_data(tmp_path, tiny_policy_folder))
    (line,) = (tmp_path / "non_finite.jsonl").read_text().splitlines()
    assert len(json.loads(line)["rows"]) == 4


def test_half_precision_without_a_scaler_is_watched_too(
    tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    """`16-true` has no loss scaling that would look for infinities."""
    module = _module(tiny_policy_folder)
    run = trainer(max_steps=3, precision="16-true")
    module.broken_steps = (0,)
    with pytest.raises(InputError, match="After step 0"):
        run.fit(module, datamodule=_data(tmp_path, tiny_policy_folder))


def test_too_many_in_a_row_stop_the_run_anyway(tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path) -> None:
    module = _module(tiny_policy_folder, non_finite="skip")
    module.broken_steps = (0, 1, *range(3, 40))
    with pytest.raises(InputError, match="10 steps in a row"):
        trainer(max_steps=40).fit(module, datamodule=_data(tmp_path, tiny_policy_folder))
    assert module.non_finite.skipped == 12


def test_one_broken_micro_batch_leaves_out_the_whole_step(
    tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    class Second(Breaking):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if batch_idx == 1 else loss

    module = Second(PolicySpec(source=str(tiny_policy_folder)), non_finite="skip")
    saved = Weights()
    run = trainer(max_steps=2, accumulate_grad_batches=3, callbacks=[saved])
    run.fit(module, datamodule=_data(tmp_path, tiny_policy_folder))
    assert (saved.held[0] == saved.held[3]).all()
    assert not (saved.held[3] == saved.held[-1]).all()
    (line,) = (tmp_path / "non_finite.jsonl").read_text().splitlines()
    assert len(json.loads(line)["rows"]) == 12


def test_the_row_with_a_broken_reward_is_named(tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path) -> None:
    class BrokenReward(RewardDataModule):
        def score(self, rollouts: Rollouts, progress: Any = None) -> RolloutBatch:
            batch = super().score(rollouts, progress)
            reward = batch.reward.clone()
            reward[3, 0] = math.nan
            return batch._replace(reward=reward, sft_logprob=batch.sft_logprob + reward - reward)

    sft = str(tiny_policy_folder)
    data = BrokenReward(
        write_prompts(tmp_path / "prompts.jsonl"), sft, [write_weaker_policy(sft, tmp_path / "weaker")],
        sampling=SamplingOptions(max_new_tokens=6), samples_per_prompt=2, prompts_per_rollout=4,
    )  # fmt: skip
    module = DensePathReinforce(
        PolicySpec(source=sft),
        "reinforce",
        kl=KLSpec(coefficient=1.0, target=0.01),
        non_finite="skip",
        check_start=False,
    )
    saved = Weights()
    trainer(max_steps=1, callbacks=[saved]).fit(module, datamodule=data)
    assert (saved.held[0] == saved.held[1]).all()
    assert module.kl_coefficient == 1.0
    (line,) = (tmp_path / "non_finite.jsonl").read_text().splitlines()
    rows = json.loads(line)["rows"]
    broken = [row for row in rows if "reward" in row["not_finite"]]
    assert len(rows) == 8
    assert len(broken) == 1
    assert rows[0]["row"].startswith(str(tmp_path / "prompts.jsonl:"))


def test_an_unknown_policy_is_refused(tiny_policy_folder: Path) -> None:
    with pytest.raises(InputError, match="ignore"):
        _module(tiny_policy_folder, non_finite="ignore")
