"""One step on two ranks equals one step on one: rollouts, baselines, whitening and token counts are shared."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import RewardDataModule
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rollouts import SamplingOptions
from tests.training import quiet_trainer, write_prompts, write_weaker_policy


class SaveWeights(lightning.Callback):
    """The first rank writes its weights, and β, where the test finds them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            parts = [weight.detach().flatten() for weight in pl_module.policy.parameters()]
            torch.save(torch.cat([*parts, torch.tensor([pl_module.kl_coefficient])]), self.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "credit"),
    [
        ("reinforce", CreditSpec(discount=1.0, baseline="position", whiten=True)),
        ("all_actions", CreditSpec(discount=0.9, baseline="batch")),
    ],
)
def test_two_ranks_equal_one(estimator: Any, credit: CreditSpec, tiny_policy_folder: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    reference = write_weaker_policy(tiny_policy_folder, tmp_path / "reference")
    stops = {"generation_config.json": '{"eos_token_id": [1, 5, 10, 15, 20, 25, 30, 35], "pad_token_id": 0}'}
    for name, content in stops.items():
        (Path(reference) / name).write_text(content)

    def trained(ranks: int) -> torch.Tensor:
        module = DensePathReinforce(
            PolicySpec(source=reference),
            estimator,
            credit,
            KLSpec(0.5, target=0.01),
            optimizer=partial(torch.optim.SGD, lr=0.5),
            schedule=ScheduleSpec("constant", 0.0),
        )
        data = RewardDataModule(
            prompts, reference, [str(tiny_policy_folder)], sampling=SamplingOptions(9), samples_per_prompt=2,
            prompts_per_rollout=4,
        )  # fmt: skip
        path = tmp_path / f"{ranks}.pt"
        options: dict[str, Any] = {"strategy": "ddp_spawn", "devices": ranks} if ranks > 1 else {}
        quiet_trainer(tmp_path, max_steps=2, max_epochs=-1, callbacks=[SaveWeights(path)], **options).fit(
            module, datamodule=data
        )
        return torch.load(path)

    torch.testing.assert_close(trained(2), trained(1), atol=2e-6, rtol=0)
