"""Dense-Path REINFORCE: what it samples from, where it starts, and what it logs."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback

from dpr_lightning.data import RewardDataModule
from dpr_lightning.engine import action_logits
from dpr_lightning.functional import token_logprobs
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, ScheduleSpec, estimate_advantages
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, save_policy
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch

Trainers = Callable[..., lightning.Trainer]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + {n * n} ="}) + "\n" for n in range(12)))
    return str(path)


@pytest.fixture(scope="module")
def reference(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = PolicySpec(source=str(tiny_policy_folder))
    model, tokenizer = build_policy(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return str(save_policy(model, tokenizer, tmp_path_factory.mktemp("reference") / "policy", spec))


def module_on(folder: Path, **options: Any) -> DensePathReinforce:
    settings: dict[str, Any] = {
        "estimator": "reinforce",
        "credit": CreditSpec(discount=1.0, baseline="position"),
        "kl": KLSpec(coefficient=1.0),
        "optimizer": partial(torch.optim.SGD, lr=1.0),
        "schedule": ScheduleSpec(kind="constant", warmup_fraction=0.0),
    }
    return DensePathReinforce(PolicySpec(source=str(folder)), **(settings | options))


def data_on(prompts: str, folder: Path, reference: str, **options: Any) -> RewardDataModule:
    settings: dict[str, Any] = {
        "sampling": SamplingOptions(6),
        "samples_per_prompt": 2,
        "prompts_per_rollout": 4,
    }
    return RewardDataModule(prompts, str(folder), [reference], **(settings | options))


class Watch(Callback):
    """Keeps every batch with the policy's own view of it just before the step."""

    def __init__(self) -> None:
        self.seen: list[tuple[RolloutBatch, torch.Tensor, torch.Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: RolloutBatch, batch_idx: int
    ) -> None:
        with torch.no_grad():
            scored = action_logits(pl_module.policy, batch.tokens, batch.mask)
            self.seen.append((batch, token_logprobs(scored.logits, scored.tokens), scored.mask))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_each_rollout_is_drawn_from_the_policy_as_the_last_step_left_it(
    prompts: str, tiny_policy_folder: Path, reference: str, trainer: Trainers
) -> None:
    watch = Watch()
    data = data_on(prompts, tiny_policy_folder, reference)
    trainer(max_steps=5, max_epochs=-1, callbacks=[watch]).fit(module_on(tiny_policy_folder), datamodule=data)
    assert len(watch.seen) == 5
    for batch, logprob, mask in watch.seen:
        torch.testing.assert_close(batch.behaviour_logprob * mask, logprob * mask, atol=2e-5, rtol=0)
    last, first = watch.seen[-1], watch.seen[0]
    drift = (last[0].behaviour_logprob - last[0].sft_logprob).abs().max()
    assert drift > 1e-4
    assert (first[0].behaviour_logprob - first[0].sft_logprob).abs().max() < 2e-5
    indices = [index for batch, *_ in watch.seen[:3] for index in batch.prompt.tolist()]
    assert sorted(set(indices)) == list(range(12))


def test_a_rollout_is_used_as_often_as_asked_and_then_replaced(
    prompts: str, tiny_policy_folder: Path, reference: str, trainer: Trainers
) -> None:
    watch = Watch()
    module = module_on(tiny_policy_folder, clip_range=0.01)
    data = data_on(prompts, tiny_policy_folder, reference, refresh_every=3)
    trainer(max_steps=6, max_epochs=-1, callbacks=[watch]).fit(module, datamodule=data)
    assert module.rollout_count == 2
    tokens = [batch.tokens for batch, *_ in watch.seen]
    assert all(torch.equal(tokens[0], row) for row in tokens[1:3])
    ratios = [metrics["train/ratio"] for metrics in watch.metrics]
    assert ratios[0] == pytest.approx(1.0, abs=1e-4)
    assert ratios[3] == pytest.approx(1.0, abs=1e-4)
    assert abs(ratios[2] - 1.0) > 1e-4
    assert watch.metrics[0]["train/clip_share"] == 0
    assert watch.metrics[2]["train/clip_share"] > 0


def test_what_is_logged(prompts: str, tiny_policy_folder: Path, reference: str, trainer: Trainers) -> None:
    watch = Watch()
    data = data_on(prompts, tiny_policy_folder, reference)
    module = module_on(tiny_policy_folder, estimator="all_actions")
    trainer(max_steps=1, max_epochs=-1, callbacks=[watch]).fit(module, datamodule=data)
    result, (batch, _, mask) = watch.metrics[0], watch.seen[0]
    assert result["rollout/length"] == pytest.approx(float(mask.sum()) / len(mask))
    assert result["rollout/reward"] == pytest.approx(float((batch.reward * mask).sum()) / len(mask), rel=1e-4)
    assert result["rollout/reverse_kl"] == pytest.approx(0.0, abs=1e-4)
    assert result["train/kl_to_sft"] == pytest.approx(0.0, abs=1e-5)
    assert result["train/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert result["train/entropy"] > 0
    assert result["train/gradient_norm"] > 0
    assert result["train/kl_coefficient"] == 1.0


@pytest.mark.parametrize(("target", "moves"), [(1e-6, 1), (100.0, -1)])
def test_adaptive_kl_coefficient_follows_its_target(
    target: float, moves: int, prompts: str, tiny_policy_folder: Path, reference: str, trainer: Trainers
) -> None:
    module = module_on(tiny_policy_folder, kl=KLSpec(coefficient=1.0, target=target, horizon=10))
    data = data_on(prompts, tiny_policy_folder, reference)
    trainer(max_steps=6, max_epochs=-1).fit(module, datamodule=data)
    assert moves * (float(module.kl_coefficient) - 1.0) > 0.05
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    resumed = module_on(tiny_policy_folder)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.kl_coefficient == module.kl_coefficient


def test_precomputed_rollouts_are_made_once(
    prompts: str, tiny_policy_folder: Path, reference: str, trainer: Trainers, tmp_path: Path
) -> None:
    def run(**options: Any) -> list[torch.Tensor]:
        watch = Watch()
        data = data_on(prompts, tiny_policy_folder, reference, precomputed=str(tmp_path / "kept"), **options)
        trainer(max_steps=4, max_epochs=-1, callbacks=[watch]).fit(module_on(tiny_policy_folder), datamodule=data)
        return [batch.tokens for batch, *_ in watch.seen]

    first = run()
    stamp = (tmp_path / "kept" / "tensors.safetensors").stat().st_mtime_ns
    again = run()
    assert (tmp_path / "kept" / "tensors.safetensors").stat().st_mtime_ns == stamp
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    with pytest.raises(ValueError, match="sampling"):
        run(sampling=SamplingOptions(5))


def test_lora_trains_the_adapter_alone_and_shares_its_base(
    prompts: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    shape = LoraSpec(rank=2, alpha=4.0)
    folders = {}
    for name, seed in (("sft", 1), ("reference", 2)):
        spec = PolicySpec(source=str(tiny_policy_folder), lora=shape)
        model, tokenizer = build_policy(spec, seed=seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_B" in key:
                    weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
        folders[name] = str(save_policy(model, tokenizer, tmp_path / name, spec))
    module = DensePathReinforce(
        PolicySpec(source=folders["sft"], lora=shape),
        "reinforce",
        credit=CreditSpec(discount=1.0, baseline="position"),
        optimizer=partial(torch.optim.SGD, lr=1.0),
    )
    data = RewardDataModule(
        prompts, folders["sft"], [folders["reference"]], sampling=SamplingOptions(6), prompts_per_rollout=4
    )
    before: dict[str, torch.Tensor] = {}

    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update({name: weight.clone() for name, weight in pl_module.policy.named_parameters()})

    trainer(max_steps=2, max_epochs=-1, callbacks=[Keep()]).fit(module, datamodule=data)
    assert data.reward is not None
    assert data.reward.frozen.is_shared
    moved = {name for name, weight in module.policy.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora_" in name and ".default." in name for name in moved)


@pytest.mark.parametrize("level", ["token", "sentence"])
@pytest.mark.parametrize("future_only", [False, True])
def test_advantages_by_hand(level: Any, future_only: bool) -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    reward = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, float("nan")]], dtype=torch.float64)
    behaviour = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -2.0, -9.0]], dtype=torch.float64)
    sft = torch.tensor([[-2.0, -1.0, -3.0], [-2.0, -1.0, -9.0]], dtype=torch.float64)
    other = torch.zeros_like(reward)
    whole = torch.zeros(2, dtype=torch.int64)
    rollout = RolloutBatch(whole, mask, whole, whole, behaviour, sft, other, reward, other, torch.tensor(5.0))
    result = estimate_advantages(
        rollout,
        mask,
        CreditSpec(discount=0.5, baseline="none", level=level),
        kl_coefficient=0.5,
        future_only=future_only,
    )
    penalised = torch.tensor([[0.5, 2.0, 3.0], [8.0, 16.5, 0.0]], dtype=torch.float64)
    if level == "sentence":
        expected = penalised.sum(1, keepdim=True).expand(2, 3).clone()
    else:
        expected = torch.tensor([[0.5 + 1.0 + 0.75, 3.5, 3.0], [16.25, 16.5, 0.0]], dtype=torch.float64)
    if future_only:
        expected = expected - penalised
    torch.testing.assert_close(result, expected.masked_fill(~mask, 0.0), atol=1e-12, rtol=0)
