"""DPR with policies whose layers keep states: sampling, scoring and learning agree."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch

from dpr_lightning.data import RewardDataModule
from dpr_lightning.modules import CreditSpec, DensePathReinforce
from dpr_lightning.policies import LoraSpec, PolicySpec
from dpr_lightning.rollouts import SamplingOptions
from tests.architectures.models import tiny_model
from tests.tiny import tiny_tokenizer
from tests.training import Metrics, write_prompts, write_weaker_policy

LORA = LoraSpec(rank=2, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize(("kind", "lora"), [("lfm2", None), ("qwen3_next", None), ("falcon_h1", LORA)])
def test_a_run_of_dpr(
    kind: str, lora: LoraSpec | None, tmp_path: Path, trainer: Callable[..., lightning.Trainer]
) -> None:
    folder = tmp_path / "policy"
    tiny_model(kind).save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(folder)
    reference = write_weaker_policy(folder, tmp_path / "reference")
    module = DensePathReinforce(
        PolicySpec(source=str(folder), lora=lora),
        "reinforce",
        credit=CreditSpec(discount=1.0, baseline="position"),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    data = RewardDataModule(
        write_prompts(tmp_path / "prompts.jsonl"),
        str(folder),
        [reference],
        sampling=SamplingOptions(6),
        samples_per_prompt=2,
        prompts_per_rollout=4,
    )
    metrics = Metrics()
    trainer(max_steps=2, max_epochs=-1, callbacks=[metrics]).fit(module, datamodule=data)
    for step in metrics.steps:
        assert step["train/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics.steps[0]["rollout/reverse_kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics.steps[0]["train/gradient_norm"] > 0
