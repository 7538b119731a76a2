"""How long a rollout is used, and what holds while it is: epochs, accumulation, one β, samples of another policy."""

import csv
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from dpr_lightning.data import RewardDataModule
from dpr_lightning.engine import disable_dropout, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, ScheduleSpec, estimate_advantages
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch
from tests.modules.conftest import weights
from tests.training import Metrics, write_prompts, write_weaker_policy

Trainers = Callable[..., lightning.Trainer]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl")


@pytest.fixture(scope="module")
def reference(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weaker_policy(tiny_policy_folder, tmp_path_factory.mktemp("reference") / "policy")


@pytest.fixture
def learner(tiny_policy_folder: Path) -> Callable[..., DensePathReinforce]:
    def make(**options: Any) -> DensePathReinforce:
        settings: dict[str, Any] = {
            "estimator": "reinforce",
            "credit": CreditSpec(discount=1.0, baseline="position"),
            "optimizer": partial(torch.optim.SGD, lr=1.0),
            "schedule": ScheduleSpec(kind="constant", warmup_fraction=0.0),
        }
        return DensePathReinforce(PolicySpec(source=str(tiny_policy_folder)), **(settings | options))

    return make


@pytest.fixture
def data(prompts: str, tiny_policy_folder: Path, reference: str) -> Callable[..., RewardDataModule]:
    def make(**options: Any) -> RewardDataModule:
        settings: dict[str, Any] = {
            "sampling": SamplingOptions(6), "samples_per_prompt": 2, "prompts_per_rollout": 4
        }  # fmt: skip
        return RewardDataModule(prompts, str(tiny_policy_folder), [reference], **(settings | options))

    return make


def test_every_epoch_has_its_rollouts(trainer: Trainers, learner: Any, data: Any) -> None:
    module = learner()
    run = trainer(max_epochs=3)
    run.fit(module, datamodule=data())
    assert run.global_step == 3 * 3
    assert module.rollout_count == 3 * 3


def test_rewards_of_every_token_are_gone_when_the_next_ones_are_made(
    trainer: Trainers, learner: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    references: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    inner = DenseReward.score_actions

    def score_actions(self: DenseReward, *arguments: Any) -> Any:
        alive.append(sum(saved() is not None for saved in references))
        scores, actions = inner(self, *arguments)
        references.extend(weakref.ref(state.hidden) for state in actions.states)
        return scores, actions

    monkeypatch.setattr(DenseReward, "score_actions", score_actions)
    trainer(max_steps=4, max_epochs=-1).fit(learner(estimator="all_actions"), datamodule=data())
    assert alive == [0, 0, 0, 0]


@pytest.mark.parametrize("target", [None, 0.01])
def test_one_kl_coefficient_holds_for_all_micro_batches(target: float | None, trainer: Trainers, learner: Any,
                                                        data: Any) -> None:  # fmt: skip
    def trained(accumulate: int) -> tuple[torch.Tensor, float]:
        module = learner(estimator="all_actions", kl=KLSpec(0.5, target=target, horizon=2))
        trainer(max_steps=3, max_epochs=-1, accumulate_grad_batches=accumulate).fit(module, datamodule=data())
        return weights(module), float(module.kl_coefficient)

    (whole, beta), (parts, same_beta) = trained(1), trained(4)
    assert beta == pytest.approx(same_beta, rel=1e-4)
    assert (beta != 0.5) == (target is not None)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_logged_averages_are_those_of_all_micro_batches(trainer: Trainers, learner: Any, data: Any) -> None:
    def logged(accumulate: int) -> dict[str, float]:
        metrics = Metrics()
        options = {"max_steps": 2, "max_epochs": -1, "callbacks": [metrics]}
        module, twice = learner(clip_range=0.01), data(refresh_every=2)
        trainer(accumulate_grad_batches=accumulate, **options).fit(module, datamodule=twice)
        return metrics.steps[1]

    whole, parts = logged(1), logged(3)
    assert set(whole) == set(parts)
    assert whole["train/clip_share"] > 0
    for name in ("loss", "entropy", "clip_share", "ratio", "kl_to_sft", "gradient_norm"):
        assert parts[f"train/{name}"] == pytest.approx(whole[f"train/{name}"], rel=1e-3, abs=1e-5)


def test_averages_of_a_rollout_reach_the_log_with_accumulation(
    trainer: Trainers, learner: Any, data: Any, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    options = {"max_steps": 2, "max_epochs": -1, "accumulate_grad_batches": 3, "log_every_n_steps": 1}
    trainer(logger=logger, **options).fit(learner(), datamodule=data())
    with (Path(logger.log_dir) / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2
    for name in ("rollout/length", "rollout/reverse_kl", "train/entropy"):
        assert all(row[name] for row in rows)
    assert rows[0]["rollout/reward"] != rows[1]["rollout/reward"]


class KeepRollouts(lightning.Callback):
    """Keeps each rollout with what the policy, as it was at its start, says of it."""

    def __init__(self) -> None:
        self.rollouts: list[tuple[RolloutBatch, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: RolloutBatch, batch_idx: int) -> None:
        rollout = pl_module.last_rollout
        self.rollouts.append((rollout, sequence_logprobs(pl_module.policy, rollout.tokens, rollout.mask)))


@pytest.mark.parametrize("source", ["precomputed", "temperature"])
def test_the_hold_on_sft_is_felt_where_others_drew_the_rollout(
    source: str, trainer: Trainers, learner: Any, data: Any, tmp_path: Path
) -> None:
    """Precomputed rollouts are π_SFT's own: their behaviour log-probabilities make every KL 0."""
    keep = KeepRollouts()
    credit = CreditSpec(discount=1.0, baseline="none")
    module = learner(credit=credit, kl=KLSpec(coefficient=2.0), check_start=False)
    options: dict[str, Any] = {"precomputed": str(tmp_path / "kept")}
    if source == "temperature":
        options = {"sampling": SamplingOptions(6, temperature=0.7)}
    # r̂ has either sign, so that a few steps leave the policy something to choose.
    datamodule = data(reward=RewardSpec("log_ratio"), **options)
    trainer(max_steps=3, max_epochs=-1, callbacks=[keep]).fit(module, datamodule=datamodule)
    rollout, logprob = keep.rollouts[-1]
    width = rollout.reward.shape[1]
    mask = torch.arange(width) < rollout.mask.sum(1, keepdim=True)
    logprob = torch.nn.functional.pad(logprob, (0, width - logprob.shape[1]))
    expected = estimate_advantages(rollout._replace(behaviour_logprob=logprob), mask, credit, kl_coefficient=2.0)
    torch.testing.assert_close(rollout.advantage, expected, atol=1e-5, rtol=0)
    as_if_on_policy = estimate_advantages(rollout, mask, credit, kl_coefficient=2.0)
    assert (rollout.advantage - as_if_on_policy).abs().max() > 1e-3
    assert "rollout/reverse_kl" not in module.trainer.callback_metrics


def test_adaptive_coefficient_needs_samples_of_the_policy(
    trainer: Trainers, learner: Any, data: Any, tmp_path: Path
) -> None:
    module = learner(kl=KLSpec(target=0.1))
    with pytest.raises(InputError, match=r"kl\.target"):
        trainer(max_steps=1, max_epochs=-1).fit(module, datamodule=data(precomputed=str(tmp_path / "kept")))


def test_a_policy_that_is_not_sft_is_refused(trainer: Trainers, data: Any, reference: str) -> None:
    module = DensePathReinforce(
        PolicySpec(source=reference), "reinforce", CreditSpec(discount=1.0, baseline="position")
    )
    with pytest.raises(InputError, match=r"(?s)does not start as π_SFT.*model\.policy.*data\.sft"):
        trainer(max_steps=1).fit(module, datamodule=data())


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_p": 0.5}])
def test_another_sampling_distribution_is_explained(
    options: dict[str, float], trainer: Trainers, learner: Any, data: Any
) -> None:
    sampling = SamplingOptions(6, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"(?s)training pass and the sampler disagree.*temperature or top_p"):
        trainer(max_steps=1).fit(learner(), datamodule=data(sampling=sampling))


def test_dropout_left_on_is_caught_and_is_off_by_itself(
    trainer: Trainers, learner: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dropout(policy: torch.nn.Module) -> None:
        for module in policy.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5

    def both(policy: torch.nn.Module) -> None:
        with_dropout(policy)
        disable_dropout(policy)

    monkeypatch.setattr("dpr_lightning.modules.rollout_algorithm.disable_dropout", both)
    trainer(max_steps=1).fit(learner(), datamodule=data())
    monkeypatch.setattr("dpr_lightning.modules.rollout_algorithm.disable_dropout", with_dropout)
    with pytest.raises(InputError, match=r"dropout|does not start"):
        trainer(max_steps=1).fit(learner(), datamodule=data())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_numbers_of_a_batch_keep_their_precision(precision: Any, trainer: Trainers, learner: Any, data: Any) -> None:
    batches: list[RolloutBatch] = []

    class Keep(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch)

    trainer(max_steps=2, precision=precision, callbacks=[Keep()]).fit(learner(), datamodule=data())
    assert len(batches) == 2
    for batch in batches:
        numbers = [part for part in batch if isinstance(part, torch.Tensor) and part.is_floating_point()]
        assert len(numbers) == 6
        assert {part.dtype for part in numbers} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: CreditSpec(level="sentence", baseline="response"), "leave nothing"),
        (lambda: CreditSpec(discount=1.5), "discount"),
        (lambda: KLSpec(coefficient=-1.0), "negative"),
        (lambda: KLSpec(target=0.0), r"kl\.target"),
        (
            lambda: DensePathReinforce(PolicySpec(source="x"), "all_actions", CreditSpec(discount=1.0, whiten=True)),
            "exact immediate term",
        ),
        (lambda: DensePathReinforce(PolicySpec(source="x"), "all_actions", CreditSpec(level="sentence")), "token"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make()


def test_sentence_baseline_counts_samples_that_have_ended() -> None:
    """Leave-one-out over whole responses: Kool et al. 2019, (own − mean of others), at every token."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    reward = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    none = torch.zeros_like(reward)
    whole = torch.zeros(2, dtype=torch.int64)
    rollout = RolloutBatch(whole, mask, whole, whole, none, none, none, reward, none, torch.tensor(4.0))
    result = estimate_advantages(
        rollout, mask, CreditSpec(level="sentence", baseline="leave_one_out"), kl_coefficient=1.0, group_size=2
    )
    expected = torch.tensor([[4.0, 4.0, 4.0], [-4.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(result, expected)
