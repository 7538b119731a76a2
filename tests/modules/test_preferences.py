"""DPO, IPO and offline REBEL on pairs of a file, as they train."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import PreferenceDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import ScheduleSpec, SelfPlay
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import SelfPlayBatch
from tests.modules.conftest import weights
from tests.training import Metrics, write_weaker_policy
from tests.workspace import write_rows

ROWS = [
    {"prompt": f"{n} - 1 =", "chosen": "Answer: " + "9" * (1 + n % 3), "rejected": "Answer: " + "7" * (1 + n % 5)}
    | {"chosen_reward": 2.0 + n, "rejected_reward": 1.0}
    for n in range(8)
]


@pytest.fixture
def data(tmp_path: Path, tiny_policy_folder: Path) -> Callable[..., PreferenceDataModule]:
    def make(rows: list[Any] = ROWS, **options: Any) -> PreferenceDataModule:
        defaults = {"opponent": str(tiny_policy_folder), "batch_size": 8, "cache_dir": None, "validation": None}
        return PreferenceDataModule(write_rows(tmp_path / "pairs.jsonl", rows), **(defaults | options))

    return make


@pytest.fixture
def fit(tmp_path: Path, trainer: Callable[..., lightning.Trainer], tiny_policy_folder: Path) -> Callable[..., SelfPlay]:
    def run(
        datamodule: Any, *, steps: int = 1, trainer_options: dict[str, Any] | None = None, **model: Any
    ) -> SelfPlay:
        options = {"optimizer": partial(torch.optim.Adam, lr=3e-3), "schedule": ScheduleSpec(kind="constant")}
        module = SelfPlay(PolicySpec(source=str(tiny_policy_folder)), **(options | model))
        trainer(max_steps=steps, max_epochs=-1, **(trainer_options or {})).fit(module, datamodule=datamodule)
        return module

    return run


@pytest.mark.parametrize(
    ("loss", "scale", "first"),
    [("dpo", 0.1, 0.6931), ("ipo", 0.5, 1.0), ("rebel", 0.5, sum((0.5 * (1 + n)) ** 2 for n in range(8)) / 8)],
)
def test_chosen_responses_gain_on_rejected_ones(
    loss: str, scale: float, first: float, fit: Callable[..., SelfPlay], data: Callable[..., PreferenceDataModule]
) -> None:
    metrics = Metrics()
    fit(data(), loss=loss, scale=scale, steps=6, trainer_options={"callbacks": [metrics]})
    # The policy starts as its opponent, so that all log-ratios are 0.
    assert metrics.steps[0]["train/loss"] == pytest.approx(first, rel=1e-3)
    assert metrics.steps[-1]["train/loss"] < 0.9 * first
    assert metrics.steps[-1]["train/preferred"] > 0.8


def test_dpo_is_spin_to_the_bit(fit: Callable[..., SelfPlay], data: Callable[..., PreferenceDataModule]) -> None:
    trained = [weights(fit(data(), loss=loss, steps=2)) for loss in ("dpo", "spin")]
    assert torch.equal(*trained)


def test_accumulated_micro_batches_are_one_batch(
    fit: Callable[..., SelfPlay], data: Callable[..., PreferenceDataModule]
) -> None:
    sgd = partial(torch.optim.SGD, lr=0.05)
    whole = weights(fit(data(), loss="ipo", optimizer=sgd))
    options = {"accumulate_grad_batches": 4}
    parts = weights(fit(data(batch_size=2), loss="ipo", optimizer=sgd, trainer_options=options))
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen_reward": None}, "jsonl:1 has no reward of its chosen response.*rejected_reward"),
        ({"rejected_reward": float("nan")}, "jsonl:1 has float NaN in 'rejected_reward'"),
        ({"rejected_reward": "high"}, "jsonl:1 has str \"high\" in 'rejected_reward'"),
    ],
)
def test_rewards_that_rebel_cannot_learn(
    row: dict[str, Any], says: str, fit: Callable[..., SelfPlay], data: Callable[..., PreferenceDataModule]
) -> None:
    with pytest.raises(InputError, match=says):
        fit(data([ROWS[0] | row, *ROWS[1:]]), loss="rebel")
    fit(data([ROWS[0] | row, *ROWS[1:]]), loss="dpo")


def test_what_is_missing(
    fit: Callable[..., SelfPlay],
    data: Callable[..., PreferenceDataModule],
    tiny_policy_folder: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=r"`data.opponent` is missing.*model\.policy\.source"):
        fit(data(opponent=None))
    other = write_weaker_policy(tiny_policy_folder, tmp_path / "other")
    with pytest.raises(InputError, match=r"does not start as its opponent.*data\.opponent"):
        fit(data(opponent=other))
    batch = SelfPlayBatch(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), torch.tensor(1.0))
    with pytest.raises(InputError, match=r"`model\.loss: rebel` learns differences of rewards"):
        SelfPlay(PolicySpec(source="nowhere"), loss="rebel")._rebel_loss(batch, torch.zeros(1), torch.zeros(1))
