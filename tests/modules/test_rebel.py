"""REBEL as it trains: its step by enumeration, the forms of its pairs, what it logs and what it refuses."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from dpr_lightning.data import RewardDataModule
from dpr_lightning.engine import micro_batches, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.functional import relative_reward_loss, win_rates
from dpr_lightning.modules import KLSpec, RelativeRewardRegression, RewardWeights, ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch
from tests.modules.test_enumeration import LANGUAGE, TabularPolicy
from tests.training import Metrics, write_demonstrations, write_weaker_policy

Trainers = Callable[..., lightning.Trainer]


def bare(**options: Any) -> RelativeRewardRegression:
    return RelativeRewardRegression(PolicySpec(source="nowhere"), **options)


def group_of_every_path(table: Tensor, reward: Tensor) -> RolloutBatch:
    """One prompt, to which the policy gives each of the 15 responses once."""
    start = torch.zeros(len(LANGUAGE.tokens), 1, dtype=torch.int64)
    logprob, none = LANGUAGE.logprob(table), torch.zeros_like(reward)
    return RolloutBatch(
        tokens=torch.cat([start, LANGUAGE.tokens], 1),
        mask=torch.cat([start.bool(), LANGUAGE.mask], 1),
        terminated=LANGUAGE.terminated,
        prompt=start[:, 0],
        behaviour_logprob=logprob,
        sft_logprob=LANGUAGE.logprob(LANGUAGE.random_logits(7)),
        reference_logprob=none,
        reward=reward,
        advantage=none,
        num_tokens=LANGUAGE.mask.sum().double(),
        outcome=torch.arange(15.0, dtype=torch.float64),
        group_size=len(start),
    )


def test_a_step_is_the_functions_with_the_hold_and_the_outcome_in_its_reward() -> None:
    table, later = LANGUAGE.random_logits(0), LANGUAGE.random_logits(1)
    reward = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rollout = group_of_every_path(table, reward)
    module = bare(eta=0.5, kl=KLSpec(coefficient=0.3), credit=RewardWeights(dense_weight=2.0, outcome_weight=0.1))
    module.policy = TabularPolicy(later)
    credited = module.credit(rollout)
    module.zero_grad()
    scored = module.score(credited)
    module.loss(scored, credited).backward()  # type: ignore[no-untyped-call]
    assert module.policy.head.weight.grad is not None

    expected = later.clone().requires_grad_()
    start = LANGUAGE.logprob(table).sum(1)
    total = 2.0 * reward.masked_fill(~LANGUAGE.mask, 0.0).sum(1) + 0.1 * torch.arange(15.0, dtype=torch.float64)
    total = total - 0.3 * (start - rollout.sft_logprob.sum(1))
    ratio = LANGUAGE.logprob(expected).sum(1) - start
    loss = relative_reward_loss(ratio.unsqueeze(0), total.unsqueeze(0), 0.5).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(scored.loss, loss.detach(), atol=1e-12, rtol=1e-12, check_dtype=False)
    torch.testing.assert_close(module.policy.head.weight.grad.T, expected.grad, atol=1e-12, rtol=1e-12)
    # Of the whole spread of the target so much is fitted by a policy that is unrelated to it.
    unfitted = relative_reward_loss(torch.zeros(1, 15), total.unsqueeze(0), 0.5)
    fitted = scored.sums["fitted"] / credited.num_tokens
    torch.testing.assert_close(fitted, (1 - loss / unfitted).detach().squeeze(), check_dtype=False)


def test_best_and_worst_are_compared() -> None:
    reward = torch.zeros(15, 3, dtype=torch.float64)
    reward[4, 0], reward[9, 0] = 3.0, -2.0
    rollout = group_of_every_path(LANGUAGE.random_logits(0), reward)._replace(outcome=None)
    credited = bare(pairing="best_worst").credit(rollout)
    assert credited.group_size == 2
    assert credited.tokens.tolist() == rollout.tokens[[4, 9]].tolist()
    assert credited.target is not None
    assert credited.target.tolist() == [3.0, -2.0]
    assert float(credited.num_tokens) == float(rollout.mask[[4, 9]].sum())


def test_rewards_can_be_win_rates() -> None:
    reward = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rollout = group_of_every_path(LANGUAGE.random_logits(0), reward)._replace(outcome=None)
    total = reward.masked_fill(~LANGUAGE.mask, 0.0).sum(1)
    credited = bare(reward="win_rate", eta=3.0).credit(rollout)
    assert credited.target is not None
    torch.testing.assert_close(credited.target, 3.0 * win_rates(total.unsqueeze(0))[0])


@pytest.mark.parametrize("parts", [2, 4])
def test_the_gradient_does_not_depend_on_the_micro_batches(parts: int) -> None:
    """Whole groups of uneven length in each part, float64."""
    generator = torch.Generator().manual_seed(3)
    table, rows = LANGUAGE.random_logits(0), torch.randint(15, (24,), generator=generator)
    reward = torch.randn(15, 3, dtype=torch.float64, generator=generator)
    whole = group_of_every_path(table, reward).take(rows)
    whole = whole._replace(group_size=3, prompt=torch.arange(8).repeat_interleave(3), num_tokens=whole.mask.sum())
    gradients = []
    for number in (1, parts):
        module = bare(eta=0.5)
        module.policy = TabularPolicy(LANGUAGE.random_logits(1))
        credited = module.credit(whole)
        indices = micro_batches(credited.tokens, credited.mask, number, groups=3)
        for part in credited.split(indices, whole_groups=True):
            prompts = part.prompt.view(-1, 3)
            assert (prompts == prompts[:, :1]).all()
            module.loss(module.score(part), part).backward()  # type: ignore[no-untyped-call]
        gradients.append(module.policy.head.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)


@pytest.fixture(scope="module")
def reference(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_weaker_policy(tiny_policy_folder, tmp_path_factory.mktemp("reference") / "policy")


@pytest.fixture
def data(tmp_path: Path, tiny_policy_folder: Path, reference: str) -> Callable[..., RewardDataModule]:
    def make(**options: Any) -> RewardDataModule:
        rows = write_demonstrations(tmp_path / "rows.jsonl")
        settings = {"sampling": SamplingOptions(6), "samples_per_prompt": 2, "prompts_per_rollout": 8}
        settings |= {"refresh_every": 3}
        return RewardDataModule(rows, str(tiny_policy_folder), [reference], **(settings | options))

    return make


@pytest.fixture
def fit(trainer: Trainers, tiny_policy_folder: Path) -> Callable[..., RelativeRewardRegression]:
    def run(
        datamodule: Any, *, trainer_options: dict[str, Any] | None = None, **model: Any
    ) -> RelativeRewardRegression:
        options = {"optimizer": partial(torch.optim.Adam, lr=1e-3), "schedule": ScheduleSpec(kind="constant")}
        module = RelativeRewardRegression(PolicySpec(source=str(tiny_policy_folder)), **(options | model))
        trainer(**({"max_steps": 3, "max_epochs": -1} | (trainer_options or {}))).fit(module, datamodule=datamodule)
        return module

    return run


def test_the_share_of_the_target_that_is_fitted_grows_with_each_step_of_a_rollout(
    fit: Callable[..., RelativeRewardRegression], data: Callable[..., RewardDataModule]
) -> None:
    metrics = Metrics()
    adam = partial(torch.optim.Adam, lr=2e-4)
    options = {"callbacks": [metrics], "max_steps": 4, "accumulate_grad_batches": 2}
    fit(data(), eta=2.0, optimizer=adam, trainer_options=options)
    fitted = [step["train/fitted"] for step in metrics.steps]
    spread = [step["rollout/target_spread"] for step in metrics.steps]
    assert fitted[0] == pytest.approx(0.0, abs=1e-3)
    assert 0.01 < fitted[1] < fitted[2] < 1.0
    assert fitted[3] == pytest.approx(0.0, abs=1e-3)  # another rollout
    assert spread[0] == spread[1] == spread[2] != spread[3]
    assert metrics.steps[0]["train/loss"] == pytest.approx(spread[0] ** 2, rel=1e-3)


def test_demonstrations_are_the_other_response(
    fit: Callable[..., RelativeRewardRegression],
    data: Callable[..., RewardDataModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics, rollouts = Metrics(), []
    credit = RelativeRewardRegression.credit

    def recording(self: RelativeRewardRegression, rollout: RolloutBatch) -> RolloutBatch:
        if not rollouts:
            start = sequence_logprobs(self.policy, rollout.tokens, rollout.mask)
            torch.testing.assert_close(rollout.behaviour_logprob, start, atol=1e-5, rtol=0)
        rollouts.append(rollout)
        return credit(self, rollout)

    monkeypatch.setattr(RelativeRewardRegression, "credit", recording)
    datamodule = data(samples_per_prompt=1)
    module = fit(datamodule, against="demonstration", trainer_options={"callbacks": [metrics]})
    assert datamodule.prompts is not None
    for row, prompt in enumerate(rollouts[0].prompt.tolist()):
        learnt = datamodule.tokenizer.decode(rollouts[0].tokens[row][rollouts[0].mask[row]])
        is_demonstration = learnt == datamodule.prompts.metadata[prompt]["completion"] + "<eos>"
        assert is_demonstration == (row % 2 == 1)
    assert rollouts[0].group_size == 2
    assert len(module.last_rollout.mask) == 8  # type: ignore[union-attr]
    assert metrics.steps[0]["train/fitted"] == pytest.approx(0.0, abs=1e-3)
    assert metrics.steps[2]["train/fitted"] > 0.01


def test_each_own_response_is_compared_with_the_demonstration() -> None:
    module = bare(against="demonstration")
    ratio, target = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    difference = ratio - target
    expected = (difference[:, :3] - difference[:, 3:]).square().mean(1)
    torch.testing.assert_close(module._group_losses(ratio, target), expected)


def test_what_it_refuses(
    fit: Callable[..., RelativeRewardRegression], data: Callable[..., RewardDataModule], tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"−4η times.*level: sentence, baseline: leave_one_out.*`data\.refresh_every` to 2"
    ):
        fit(data(refresh_every=1))
    with pytest.raises(InputError, match=r"`data\.samples_per_prompt` to 2"):
        fit(data(samples_per_prompt=1))
    with pytest.raises(InputError, match="Leave one of them out"):
        fit(data(precomputed=str(tmp_path / "saved")), against="demonstration")
    for options, says in (
        ({"eta": 0.0}, r"`model\.eta` is 0"),
        ({"kl": KLSpec(target=0.1)}, r"`model\.kl\.target`"),
        ({"pairing": "best_worst", "against": "demonstration"}, "choose one of the two"),
    ):
        with pytest.raises(InputError, match=says):
            bare(**options)


def test_it_warns_of_targets_out_of_reach_once(
    fit: Callable[..., RelativeRewardRegression],
    data: Callable[..., RewardDataModule],
    caplog: pytest.LogCaptureFixture,
) -> None:
    idle = partial(torch.optim.SGD, lr=0.0)
    with caplog.at_level(logging.WARNING, "dpr_lightning"):
        fit(data(refresh_every=2), eta=1e3, optimizer=idle, trainer_options={"max_steps": 6})
    warnings = [record.getMessage() for record in caplog.records if "rebel" in record.name]
    assert len(warnings) == 2
    assert "spread of" in warnings[0]
    assert "0.0% of the reward's differences were fitted" in warnings[1]


def test_an_outcome_that_only_the_verifier_knows(
    fit: Callable[..., RelativeRewardRegression], data: Callable[..., RewardDataModule]
) -> None:
    """The dense reward off: a rollout learns from the verifier's scores alone."""
    metrics = Metrics()
    datamodule = data(verifier=lambda prompt, answer, metadata: float(len(answer)), samples_per_prompt=3)
    credit = RewardWeights(dense_weight=0.0, outcome_weight=0.5)
    module = fit(datamodule, credit=credit, trainer_options={"callbacks": [metrics], "max_steps": 1})
    assert module.last_rollout is not None
    assert module.last_rollout.outcome is not None
    assert module.last_rollout.target is not None
    torch.testing.assert_close(module.last_rollout.target, 0.5 * module.last_rollout.outcome)
