"""The outcome of a verifier as a separate return stream, beside the token reward or instead of it."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import RewardDataModule
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, ScheduleSpec, estimate_advantages
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch
from tests.training import Metrics, write_prompts, write_weaker_policy

Trainers = Callable[..., lightning.Trainer]
MASK = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
OUTCOME = torch.tensor([1.0, 0.0, 1.0, 0.5])


def advantages(group_size: int, future_only: bool = False, outcome: Any = OUTCOME, **credit: Any) -> torch.Tensor:
    zero, reward = torch.zeros(4, 2), torch.tensor([[1.0, 2.0], [3.0, 0.0], [-1.0, 0.5], [0.0, 4.0]])
    rows = torch.zeros(4)
    rollout = RolloutBatch(rows, MASK, rows, rows, zero, zero, zero, reward, zero, torch.tensor(7.0), outcome)
    return estimate_advantages(
        rollout,
        MASK,
        CreditSpec(**({"discount": 1.0, "baseline": "none"} | credit)),
        kl_coefficient=1.0,
        group_size=group_size,
        future_only=future_only,
    )


def test_every_token_gets_its_outcome_less_that_of_the_other_samples() -> None:
    result = advantages(2, dense_weight=0.0, outcome_weight=3.0)
    expected = 3.0 * torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.5, 0.5], [-0.5, -0.5]])
    torch.testing.assert_close(result, expected)


def test_with_one_sample_a_prompt_it_is_less_the_mean_of_the_rollout() -> None:
    result = advantages(1, dense_weight=0.0)
    torch.testing.assert_close(result, (OUTCOME - 0.625).unsqueeze(1) * MASK)


@pytest.mark.parametrize("discount", [0.0, 0.9])
@pytest.mark.parametrize("future_only", [False, True])
def test_the_streams_add_up_and_the_discount_is_the_rewards_alone(discount: float, future_only: bool) -> None:
    both = advantages(2, future_only, discount=discount)
    dense = advantages(2, future_only, outcome=None, discount=discount)
    torch.testing.assert_close(both - dense, advantages(2, dense_weight=0.0))
    assert dense.any() == (discount > 0 or not future_only)


def starts_with_seven(prompt: str, answer: str, metadata: Mapping[str, Any]) -> float:
    """A verifier that a random policy satisfies now and then."""
    return float(answer.startswith("7"))


@pytest.fixture
def data(tmp_path: Path, tiny_policy_folder: Path) -> RewardDataModule:
    return RewardDataModule(
        write_prompts(tmp_path / "prompts.jsonl"),
        str(tiny_policy_folder),
        [write_weaker_policy(tiny_policy_folder, tmp_path / "reference")],
        RewardSpec("one_sided_centred"),
        SamplingOptions(3),
        verifier=starts_with_seven,
        samples_per_prompt=8,
        prompts_per_rollout=8,
    )


@pytest.mark.parametrize("estimator", ["reinforce", "all_actions"])
def test_a_policy_learns_what_the_verifier_wants(
    estimator: Any, data: RewardDataModule, tiny_policy_folder: Path, trainer: Trainers
) -> None:
    metrics = Metrics()
    module = DensePathReinforce(
        PolicySpec(source=str(tiny_policy_folder)),
        estimator=estimator,
        credit=CreditSpec(discount=1.0, baseline="leave_one_out", dense_weight=0.0),
        kl=KLSpec(coefficient=0.01),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        schedule=ScheduleSpec(kind="constant", warmup_fraction=0.0),
    )
    trainer(max_steps=40, max_epochs=-1, callbacks=[metrics]).fit(module, datamodule=data)
    outcomes = [step["rollout/outcome"] for step in metrics.steps]
    assert outcomes[0] < 0.2
    assert outcomes[-1] > 0.8
