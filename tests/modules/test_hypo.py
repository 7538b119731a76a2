"""HyPO as it trains: without a hold it is DPO to the bit, and its hold is the gradient of the KL."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import HybridDataModule, PreferenceDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import HybridPreference, ScheduleSpec, SelfPlay
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import OnlineResponses
from tests.modules.conftest import weights
from tests.modules.test_enumeration import LANGUAGE, TabularPolicy
from tests.modules.test_preferences import ROWS
from tests.training import Metrics
from tests.workspace import write_rows

ESTIMATORS = ("reinforce", "all_actions")


@pytest.fixture
def fit(
    tmp_path: Path, trainer: Callable[..., lightning.Trainer], tiny_policy_folder: Path
) -> Callable[..., tuple[SelfPlay, list[dict[str, float]]]]:
    def run(
        kind: type[SelfPlay] = HybridPreference,
        data: dict[str, Any] | None = None,
        trainer_options: dict[str, Any] | None = None,
        **model: Any,
    ) -> tuple[SelfPlay, list[dict[str, float]]]:
        metrics = Metrics()
        options = {"optimizer": partial(torch.optim.Adam, lr=3e-3), "schedule": ScheduleSpec(kind="constant")}
        module = kind(PolicySpec(source=str(tiny_policy_folder)), **({"loss": "dpo"} | options | model))
        more: dict[str, Any] = {} if kind is SelfPlay else {"sampling": SamplingOptions(6)}
        source = HybridDataModule if kind is HybridPreference else PreferenceDataModule
        rows = write_rows(tmp_path / "pairs.jsonl", ROWS)
        more |= {"batch_size": 8, "cache_dir": None, "validation": None} | (data or {})
        datamodule = source(rows, str(tiny_policy_folder), **more)
        settings = {"max_steps": 3, "max_epochs": -1, "callbacks": [metrics]} | (trainer_options or {})
        trainer(**settings).fit(module, datamodule=datamodule)
        return module, metrics.steps

    return run


def test_without_a_hold_it_is_dpo_to_the_bit(fit: Callable[..., Any]) -> None:
    hybrid, steps = fit(kl_weight=0.0)
    plain, expected = fit(SelfPlay)
    assert torch.equal(weights(hybrid), weights(plain))
    assert [step["train/loss"] for step in steps] == [step["train/loss"] for step in expected]
    assert "train/kl_online" not in steps[0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_hold_is_the_gradient_of_the_kl(estimator: Any) -> None:
    """Every response of a uniform policy, as often as it is probable."""
    table = torch.zeros(LANGUAGE.states, LANGUAGE.vocabulary, dtype=torch.float64)
    opponent = LANGUAGE.random_logits(0)
    rows = torch.arange(len(LANGUAGE.mask)).repeat_interleave(3 ** (LANGUAGE.horizon - LANGUAGE.mask.sum(1)))
    start = torch.zeros(len(rows), 1, dtype=torch.int64)
    module = HybridPreference(PolicySpec(source="nowhere"), kl_estimator=estimator)
    module.policy = TabularPolicy(table)
    every = opponent.log_softmax(-1)[LANGUAGE.state][rows] if module.needs_distributions else None
    online = OnlineResponses(
        torch.cat([start, LANGUAGE.tokens[rows]], 1),
        torch.cat([start.bool(), LANGUAGE.mask[rows]], 1),
        LANGUAGE.logprob(opponent)[rows],
        torch.tensor(float(len(rows))),
        1,
        every,
    )
    hold, estimate = module._hold(online)
    hold.backward()  # type: ignore[no-untyped-call]
    leaf = table.clone().requires_grad_()
    kl = (LANGUAGE.path_probability(leaf) * (LANGUAGE.logprob(leaf) - LANGUAGE.logprob(opponent)).sum(1)).sum()
    kl.backward()  # type: ignore[no-untyped-call]
    assert module.policy.head.weight.grad is not None
    torch.testing.assert_close(module.policy.head.weight.grad.T, leaf.grad, atol=1e-12, rtol=0)
    assert float(estimate) / len(rows) == pytest.approx(float(kl.detach()), rel=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_strong_hold_keeps_the_policy_at_its_start(estimator: str, fit: Callable[..., Any]) -> None:
    drift = {}
    options = {"data": {"samples_per_prompt": 8}, "trainer_options": {"max_steps": 6}}
    for weight in (1e-9, 3.0):
        adam = partial(torch.optim.Adam, lr=1e-3)
        _, steps = fit(kl_weight=weight, kl_estimator=estimator, optimizer=adam, **options)
        drift[weight] = sum(step["train/kl_online"] for step in steps[-3:])
        assert steps[0]["train/kl_online"] == pytest.approx(0.0, abs=1e-3)
    assert drift[3.0] < 0.5 * drift[1e-9]


def test_accumulated_micro_batches_are_one_batch(fit: Callable[..., Any]) -> None:
    options = {"kl_weight": 1.0, "optimizer": partial(torch.optim.SGD, lr=0.05)}
    whole = weights(fit(**options, trainer_options={"max_steps": 2})[0])
    split = {"max_steps": 2, "accumulate_grad_batches": 4}
    parts = weights(fit(**options, data={"batch_size": 2}, trainer_options=split)[0])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-3)


def test_what_it_refuses(tmp_path: Path) -> None:
    for options, says in (({"kl_weight": -1.0}, r"`model\.kl_weight` is -1"), ({"kl_estimator": "k3"}, "reinforce or")):
        with pytest.raises(InputError, match=says):
            HybridPreference(PolicySpec(source="nowhere"), **options)  # type: ignore[arg-type]
    for data, says in (
        ({"sampling": SamplingOptions(6, 0.7)}, r"data\.sampling\.temperature"),
        ({"samples_per_prompt": 0}, r"`data\.samples_per_prompt` is 0"),
    ):
        with pytest.raises(InputError, match=says):
            HybridDataModule("pairs.jsonl", "nowhere", **data)  # type: ignore[arg-type]
