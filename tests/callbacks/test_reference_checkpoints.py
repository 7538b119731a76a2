"""Checkpoints at fractions of a run, and the average of its weights."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpr_lightning.callbacks import ReferenceCheckpoints
from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import ScheduleSpec, SupervisedIRL
from dpr_lightning.policies import LoraSpec, PolicySpec
from dpr_lightning.rewards import DenseReward
from tests.training import quiet_trainer, write_demonstrations


class Steps(lightning.Callback):
    """The trained weights after every optimizer step."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if len(self.after) < trainer.global_step:
            state = pl_module.policy.named_parameters()
            self.after.append({name: value.detach().clone() for name, value in state if value.requires_grad})


@pytest.fixture
def train(tiny_policy_folder: Path, tmp_path: Path) -> Any:
    def run(callback: ReferenceCheckpoints, lora: LoraSpec | None = None, **options: Any) -> Steps:
        steps = Steps()
        module = SupervisedIRL(
            PolicySpec(source=str(tiny_policy_folder), lora=lora),
            optimizer=partial(torch.optim.SGD, lr=0.5),
            schedule=ScheduleSpec("constant", 0.0, total_steps=10),
        )
        rows = write_demonstrations(tmp_path / "rows.jsonl")
        data = DemonstrationDataModule(rows, batch_size=2, cache_dir=str(tmp_path / "cache"), validation=None)
        quiet_trainer(tmp_path, callbacks=[steps, callback], **options).fit(module, datamodule=data)
        return steps

    return run


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"max_steps": 4, "max_epochs": -1}, 4),
        ({"max_epochs": 1}, 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 4),
        ({"max_epochs": 9, "max_steps": 3}, 3),
    ],
)
def test_checkpoints_are_the_policy_at_their_step(
    options: dict[str, int], total: int, train: Any, tmp_path: Path
) -> None:
    callback = ReferenceCheckpoints(str(tmp_path / "references"), [0.5, 0.25])
    steps = train(callback, **options)
    assert len(steps.after) == total
    shares = json.loads((tmp_path / "references" / "references.json").read_text())
    expected = {f"step_{max(1, round(fraction * total)):07d}": fraction for fraction in (0.25, 0.5)} | {"final": 1.0}
    assert shares == expected
    assert sorted(path.name for path in (tmp_path / "references").iterdir()) == sorted([*expected, "references.json"])
    for name in expected:
        step = total if name == "final" else int(name.removeprefix("step_"))
        policy = AutoModelForCausalLM.from_pretrained(tmp_path / "references" / name)
        for weight, value in policy.named_parameters():
            torch.testing.assert_close(value, steps.after[step - 1][weight], atol=0, rtol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_of_the_weights(accumulate: int, train: Any, tmp_path: Path) -> None:
    callback = ReferenceCheckpoints(str(tmp_path / "references"), [0.5], ema_decay=0.7)
    steps = train(callback, max_steps=3, max_epochs=-1, accumulate_grad_batches=accumulate)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "references" / "ema")
    for name, value in policy.named_parameters():
        first, second, third = (weights[name].double() for weights in steps.after)
        expected = 0.7 * (0.7 * first + 0.3 * second) + 0.3 * third
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=0)
    embedding = policy.get_output_embeddings().weight
    assert embedding.data_ptr() == policy.get_input_embeddings().weight.data_ptr()
    names = load_file(tmp_path / "references" / "ema" / "model.safetensors")
    plain = load_file(tmp_path / "references" / "final" / "model.safetensors")
    assert set(names) == set(plain)


def test_average_of_an_adapter_leaves_its_base_out(train: Any, tmp_path: Path, tiny_policy_folder: Path) -> None:
    callback = ReferenceCheckpoints(str(tmp_path / "references"), [0.5], ema_decay=0.5)
    steps = train(callback, LoraSpec(rank=2, alpha=4.0), max_steps=2, max_epochs=-1)
    average = callback.state_dict()["average"]
    assert average
    assert all("lora_" in name for name in average)
    weights = load_file(tmp_path / "references" / "ema" / "adapter_model.safetensors")
    assert len(weights) == len(average)
    for name, value in weights.items():
        key = name.replace(".weight", ".default.weight")
        expected = 0.5 * (steps.after[0][key] + steps.after[1][key])
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    scorer = DenseReward.from_folders(str(tmp_path / "references" / "final"), [str(tmp_path / "references" / "ema")])
    mask = torch.tensor([[False, True, True]])
    assert scorer.score(torch.tensor([[3, 4, 5]]), mask).reward.abs().max() > 0


def test_a_reference_is_never_the_last_step(train: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = ReferenceCheckpoints(str(tmp_path / "references"), [0.9, 0.95])
    train(callback, max_steps=3, max_epochs=-1)
    assert callback.written == {"step_0000002": 0.9, "final": 1.0}
    assert "one checkpoint" in caplog.text


def test_an_interrupted_run_goes_on_with_its_average(train: Any, tmp_path: Path) -> None:
    first = ReferenceCheckpoints(str(tmp_path / "a"), [0.5], ema_decay=0.5)
    train(first, max_steps=2, max_epochs=-1)
    second = ReferenceCheckpoints(str(tmp_path / "b"), [0.5], ema_decay=0.5)
    second.load_state_dict(first.state_dict())
    assert second.written == first.written
    for name, value in first.state_dict()["average"].items():
        assert torch.equal(second.state_dict()["average"][name], value)


def test_a_run_without_an_end_has_no_fractions(train: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no end.*max_steps"):
        train(ReferenceCheckpoints(str(tmp_path / "references")), max_epochs=-1)


def test_a_run_of_one_step_has_no_reference(train: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = ReferenceCheckpoints(str(tmp_path / "references"))
    train(callback, max_steps=1)
    assert callback.written == {"final": 1.0}
    assert "no earlier checkpoint" in caplog.text


def test_fractions_lie_inside_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="strictly between"):
        ReferenceCheckpoints(str(tmp_path), [0.5, 1.0])
