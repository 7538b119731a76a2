"""The load-balancing loss of experts: gradients are those of transformers' own forward pass with labels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import DemonstrationBatch
from tests.tiny import write_decoder
from tests.training import quiet_trainer

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROWS = [{"prompt": f"{n} + 1 =", "completion": "9" * (1 + 3 * n)} for n in range(4)]


class Recording(SupervisedIRL):
    """Remembers its micro-batches."""

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        self.batches = [*getattr(self, "batches", []), batch]
        return super().training_step(batch, batch_idx)


def one_step(folder: Path, source: str, batch_size: int, **options: Any) -> Recording:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    module = Recording(PolicySpec(source=source), optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0), **options)
    data = DemonstrationDataModule(str(folder / "rows.jsonl"), batch_size=batch_size, cache_dir=None, validation=None)
    trainer = quiet_trainer(folder, max_steps=1, accumulate_grad_batches=len(ROWS) // batch_size)
    trainer.fit(module, datamodule=data)
    module.logged = {name: float(value) for name, value in trainer.logged_metrics.items()}  # type: ignore[assignment]
    return module


def expected_gradients(source: str, batches: list[DemonstrationBatch], coefficient: float) -> dict[str, Tensor]:
    """Of transformers' loss, which averages over the tokens of a micro-batch, weighted by their number."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, router_aux_loss_coef=coefficient)
    total = sum(int(batch.mask.sum()) for batch in batches)
    for batch in batches:
        columns = torch.arange(1, batch.mask.shape[1] + 1)
        real = (columns <= (batch.mask * columns).amax(1, keepdim=True)).long()
        labels = batch.tokens.masked_fill(~batch.mask, -100)
        output = model(input_ids=batch.tokens, attention_mask=real, labels=labels, output_router_logits=True)
        (output.loss * batch.mask.sum() / total).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("loss", ["sft", "iq_learn"])
@pytest.mark.parametrize("batch_size", [4, 2])
def test_gradients_are_those_of_transformers(loss: Any, batch_size: int, tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "base", "mixtral", output_router_logits=True, router_aux_loss_coef=0.5, **EXPERTS)
    before = dict(AutoModelForCausalLM.from_pretrained(source).named_parameters())
    # At discount 1 the loss of IQ-Learn is that of SFT, by another forward pass.
    module = one_step(tmp_path, source, batch_size, loss=loss)
    assert len(module.batches) == 4 // batch_size
    assert (module.batches[0].tokens[:, -1] == 0).any()  # rows are padded, and padding is not balanced
    expected = expected_gradients(source, module.batches, 0.5)
    without = expected_gradients(source, module.batches, 0.0)
    for name, weight in module.policy.named_parameters():
        torch.testing.assert_close(before[name] - weight, expected[name], atol=2e-6, rtol=1e-4)
    router = next(name for name in expected if "gate.weight" in name)
    assert (expected[router] - without[router]).abs().max() > 1e-4
    logged: Any = module.logged
    assert logged["train/router_loss"] > 0
    assert logged["train/loss"] == pytest.approx(logged["train/nll"] + 0.5 * logged["train/router_loss"], rel=1e-5)


def test_the_option_wins_over_the_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_decoder(tmp_path / "base", "mixtral", **EXPERTS)
    before = dict(AutoModelForCausalLM.from_pretrained(source).named_parameters())
    module = one_step(tmp_path, source, 4)
    assert "4 experts a layer, and no load-balancing loss is added; `model.router_loss_coefficient`" in caplog.text
    assert "train/router_loss" not in module.logged  # type: ignore[operator]
    module = one_step(tmp_path, source, 4, router_loss_coefficient=2.0)
    expected = expected_gradients(source, module.batches, 2.0)
    for name, weight in module.policy.named_parameters():
        torch.testing.assert_close(before[name] - weight, expected[name], atol=5e-6, rtol=1e-4)


def test_a_dense_model_has_none(tiny_policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="router_loss_coefficient"):
        one_step(tmp_path, str(tiny_policy_folder), 4, router_loss_coefficient=0.1)
