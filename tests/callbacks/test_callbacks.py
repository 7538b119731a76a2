"""The callbacks on runs of a few steps."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import wandb
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from transformers import AutoModelForCausalLM

from dpr_lightning.callbacks import GenerationEvaluation, HeldOutReward, ReferenceCheckpoints, RolloutSamples
from dpr_lightning.data import DemonstrationDataModule, RewardDataModule
from dpr_lightning.modules import CreditSpec, DensePathReinforce, ScheduleSpec, SupervisedIRL
from dpr_lightning.policies import PolicySpec, build_policy, save_policy
from dpr_lightning.rollouts import SamplingOptions

CONSTANT = ScheduleSpec(kind="constant", warmup_fraction=0.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, first: int) -> str:
        path = folder / f"{name}.jsonl"
        held = [
            {"prompt": f"{n} + 1 =", "completion": f"Answer: {n + 1}", "answer": str(n + 1)}
            for n in range(first, first + 8)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in held))
        return str(path)

    return write


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., lightning.Trainer]:
    def make(**options: Any) -> lightning.Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "max_epochs": -1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return lightning.Trainer(**(quiet | options))

    return make


def imitation(folder: Path, rows: Callable[[str, int], str], cache: Path) -> dict[str, Any]:
    module = SupervisedIRL(
        PolicySpec(source=str(folder)), optimizer=partial(torch.optim.SGD, lr=0.5), schedule=CONSTANT
    )
    return {
        "model": module,
        "datamodule": DemonstrationDataModule(rows("train", 0), batch_size=2, cache_dir=str(cache)),
    }


class History(Callback):
    """Keeps the weights after each optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append({name: value.clone() for name, value in pl_module.policy.state_dict().items()})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_references_are_the_weights_at_their_fraction_of_the_run(
    accumulate: int,
    tiny_policy_folder: Path,
    rows: Callable[[str, int], str],
    trainer: Callable[..., lightning.Trainer],
    tmp_path: Path,
) -> None:
    history, folder = History(), tmp_path / "policies"
    references = ReferenceCheckpoints(str(folder), fractions=[0.25, 0.5], ema_decay=0.5)
    trainer(max_steps=4, accumulate_grad_batches=accumulate, callbacks=[history, references]).fit(
        **imitation(tiny_policy_folder, rows, tmp_path)
    )
    assert len(history.weights) == 4
    kept = json.loads((folder / "references.json").read_text())
    assert kept == {"step_0000001": 0.25, "step_0000002": 0.5, "final": 1.0, "ema": 1.0}
    average = history.weights[0]
    for weights in history.weights[1:]:
        average = {name: 0.5 * average[name] + 0.5 * value for name, value in weights.items()}
    # The average begins with the weights after the first step.
    expected = {
        "step_0000001": history.weights[0],
        "step_0000002": history.weights[1],
        "final": history.weights[3],
        "ema": average,
    }
    for name, weights in expected.items():
        saved = AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
        for key, value in weights.items():
            torch.testing.assert_close(saved[key], value, atol=1e-6, rtol=0)


def test_generation_is_evaluated_at_the_start_on_the_way_and_at_the_end(
    tiny_policy_folder: Path,
    rows: Callable[[str, int], str],
    trainer: Callable[..., lightning.Trainer],
    tmp_path: Path,
) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    evaluation = GenerationEvaluation(rows("evaluation", 50), "answer", max_new_tokens=6, every_n_steps=2)
    trainer(max_steps=4, logger=logger, callbacks=[evaluation]).fit(**imitation(tiny_policy_folder, rows, tmp_path))
    logger.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    steps = [
        line.split(",")[header.index("step")]
        for line in lines[1:]
        if line.split(",")[header.index("evaluation/greedy")]
    ]
    assert steps == ["0", "2", "4"]


@pytest.fixture(scope="module")
def reference(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = PolicySpec(source=str(tiny_policy_folder))
    model, tokenizer = build_policy(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return str(save_policy(model, tokenizer, tmp_path_factory.mktemp("reference") / "policy", spec))


def test_samples_and_held_out_reward_of_a_policy_gradient_run(
    tiny_policy_folder: Path,
    reference: str,
    rows: Callable[[str, int], str],
    trainer: Callable[..., lightning.Trainer],
    tmp_path: Path,
) -> None:
    module = DensePathReinforce(
        PolicySpec(source=str(tiny_policy_folder)),
        credit=CreditSpec(baseline="position"),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        schedule=CONSTANT,
    )
    data = RewardDataModule(
        rows("prompts", 0),
        str(tiny_policy_folder),
        [reference],
        sampling=SamplingOptions(5),
        samples_per_prompt=2,
        prompts_per_rollout=4,
        held_out=rows("held_out", 100),
    )
    logger = WandbLogger(project="test", save_dir=str(tmp_path), offline=True)
    samples = RolloutSamples(str(tmp_path / "samples"), every_n_rollouts=2, count=3, verifier="answer")
    logged = []

    class Metrics(Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    held_out = HeldOutReward(every_n_steps=1, limit=4)
    trainer(max_steps=3, logger=logger, callbacks=[samples, held_out, Metrics()]).fit(module, datamodule=data)
    table = samples._table
    wandb.finish()
    kept = [json.loads(line) for line in (tmp_path / "samples" / "rollout_samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept] == [1, 1, 1, 3, 3, 3]
    assert len(table.data) == 6
    for row in kept:
        assert len(row["token_rewards"]) == row["length"]
        assert sum(reward for _, reward in row["token_rewards"]) == pytest.approx(row["reward"], abs=1e-3)
        assert row["prompt"].endswith("+ 1 =")
    assert all("rollout/verifier" in metrics for metrics in logged)
    rewards = {metrics["held_out/reward_per_token"] for metrics in logged}
    assert len(rewards) == 1
    assert len({metrics["held_out/nll"] for metrics in logged}) == 3
