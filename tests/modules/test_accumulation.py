"""One accumulated optimizer step equals one big batch, for every loss, with rows of uneven length."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import DemonstrationDataModule, RewardDataModule
from dpr_lightning.modules import (
    CreditSpec,
    DensePathReinforce,
    IQLearnSpec,
    KLSpec,
    ScheduleSpec,
    SupervisedIRL,
)
from dpr_lightning.policies import PolicySpec, build_policy, save_policy
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from tests.modules.conftest import weights

Trainers = Callable[..., lightning.Trainer]
SGD = partial(torch.optim.SGD, lr=0.5)
CONSTANT = ScheduleSpec(kind="constant", warmup_fraction=0.0)

LOSSES: dict[str, dict[str, Any]] = {
    "sft": {"loss": "sft"},
    "dft": {"loss": "dft"},
    "value_expert with χ²": {"loss": "iq_learn", "iq_learn": IQLearnSpec(chi2_alpha=2.0, chi2_warmup_steps=0)},
    "v0": {"loss": "iq_learn", "iq_learn": IQLearnSpec(value_form="v0", discount=0.9)},
}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"{n} + 1 =", "completion": "Answer: " + "9" * (1 + 3 * (n % 3))} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def reference(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = PolicySpec(source=str(tiny_policy_folder))
    model, tokenizer = build_policy(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return str(save_policy(model, tokenizer, tmp_path_factory.mktemp("reference") / "policy", spec))


@pytest.mark.parametrize("name", LOSSES)
def test_imitation(name: str, demonstrations: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path) -> None:
    def trained(batch_size: int, accumulate: int) -> torch.Tensor:
        spec = PolicySpec(source=str(tiny_policy_folder))
        module = SupervisedIRL(spec, optimizer=SGD, schedule=CONSTANT, **LOSSES[name])
        data = DemonstrationDataModule(demonstrations, batch_size=batch_size, cache_dir=str(tmp_path), validation=None)
        trainer(max_steps=1, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
        return weights(module)

    whole, parts = trained(8, 1), trained(2, 4)
    start = weights(untrained(tiny_policy_folder))
    assert (whole - start).norm() > 1e-3
    assert (whole - parts).norm() < 1e-5 * (whole - start).norm()


@pytest.mark.parametrize("estimator", ["reinforce", "all_actions"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "position", "batch"])
def test_dense_path_reinforce(
    estimator: Any, baseline: Any, demonstrations: str, tiny_policy_folder: Path, reference: str, trainer: Trainers
) -> None:
    def trained(accumulate: int, refresh_every: int) -> torch.Tensor:
        module = DensePathReinforce(
            PolicySpec(source=str(tiny_policy_folder)),
            estimator=estimator,
            credit=CreditSpec(discount=0.9, baseline=baseline),
            kl=KLSpec(coefficient=0.5, reference_coefficient=0.1),
            optimizer=SGD,
            schedule=CONSTANT,
        )
        data = RewardDataModule(
            demonstrations,
            str(tiny_policy_folder),
            [reference],
            RewardSpec("one_sided_centred"),
            SamplingOptions(9),
            samples_per_prompt=2,
            prompts_per_rollout=4,
            refresh_every=refresh_every,
        )
        trainer(max_steps=refresh_every, max_epochs=-1, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
        return weights(module)

    start = weights(untrained(tiny_policy_folder))
    for steps in (1, 2):
        whole, parts = trained(1, steps), trained(3, steps)
        assert (whole - start).norm() > 1e-4
        assert (whole - parts).norm() < 1e-4 * (whole - start).norm()


def untrained(folder: Path) -> SupervisedIRL:
    """A module with the weights that training starts from."""
    module = SupervisedIRL(PolicySpec(source=str(folder)))
    module.configure_model()
    return module
