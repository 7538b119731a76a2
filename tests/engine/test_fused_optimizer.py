"""Fused steps: the same weights as PyTorch's default, unless the groups choose an implementation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from dpr_lightning.engine.fused_optimizer import use_fused_step
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec
from tests.training import quiet_trainer, write_demonstrations


def weights_after(make: Any, steps: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(7, 33, generator=generator)), nn.Parameter(torch.randn(5, generator=generator))]
    optimizer = make(weights)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_the_weights_are_the_same(kind: Any) -> None:
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    expected = weights_after(lambda weights: kind(weights, fused=False, **options))
    result = weights_after(lambda weights: use_fused_step(kind(weights, **options)))
    for one, other in zip(expected, result, strict=True):
        torch.testing.assert_close(other, one, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW([nn.Parameter(torch.ones(2))], fused=False),
        AdamW([nn.Parameter(torch.ones(2))], foreach=True),
        AdamW([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]),
        AdamW([nn.Parameter(torch.ones(2, device="meta"))]),
    ],
)
def test_others_step_as_they_were_told(optimizer: AdamW) -> None:
    assert not use_fused_step(optimizer).param_groups[0]["fused"]


def test_other_optimizers_are_left_alone() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    assert use_fused_step(optimizer).param_groups[0]["fused"] is None


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed", "gradient_clip_val": 1.0}])
def test_a_run_steps_so_and_clips(options: dict[str, Any], tiny_policy_folder: Path, tmp_path: Path) -> None:
    from dpr_lightning.data import DemonstrationDataModule

    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)))
    data = DemonstrationDataModule(write_demonstrations(tmp_path / "rows.jsonl", 4), batch_size=2, validation=None)
    trainer = quiet_trainer(tmp_path, max_steps=2, **options)
    trainer.fit(module, data)
    assert [group["fused"] for group in trainer.optimizers[0].param_groups] == [True]
