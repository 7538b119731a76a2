"""SPIN and GSIL as they train: pairs, counts, accumulation, and a gain of demonstrations over own answers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import SelfPlayDataModule, last_turn
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.functional import self_play_loss
from dpr_lightning.modules import ScheduleSpec, SelfPlay
from dpr_lightning.policies import LoraSpec, PolicySpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import SelfPlayBatch
from tests.modules.conftest import weights
from tests.training import Metrics, write_adapter, write_demonstrations, write_weaker_policy

Trainers = Callable[..., lightning.Trainer]
SGD = partial(torch.optim.SGD, lr=0.05)
CONSTANT = ScheduleSpec(kind="constant", warmup_fraction=0.0)


@pytest.fixture
def data(tmp_path: Path, tiny_policy_folder: Path) -> Callable[..., SelfPlayDataModule]:
    rows = write_demonstrations(tmp_path / "rows.jsonl")

    def make(opponent: str = str(tiny_policy_folder), **options: Any) -> SelfPlayDataModule:
        defaults = {"batch_size": 4, "sampling": SamplingOptions(7), "cache_dir": None, "validation": None}
        return SelfPlayDataModule(rows, opponent, **(defaults | options))

    return make


@pytest.fixture
def fit(trainer: Trainers, tiny_policy_folder: Path) -> Callable[..., SelfPlay]:
    def run(datamodule: SelfPlayDataModule, *, policy: PolicySpec | None = None, **options: Any) -> SelfPlay:
        settings = {name: options.pop(name) for name in list(options) if name in ("loss", "scale", "optimizer")}
        spec = policy if policy is not None else PolicySpec(source=str(tiny_policy_folder))
        module = SelfPlay(spec, schedule=CONSTANT, **({"optimizer": SGD} | settings))
        trainer(**({"max_steps": 1} | options)).fit(module, datamodule=datamodule)
        return module

    return run


def test_a_batch_holds_each_demonstration_and_an_answer_to_its_prompt(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule]
) -> None:
    datamodule = data()
    module = fit(datamodule, limit_train_batches=1)
    loader = datamodule.train_dataloader()
    batch = next(iter(loader))
    assert isinstance(batch, SelfPlayBatch)
    assert (len(batch.tokens), float(batch.num_pairs)) == (8, 4.0)
    rows = (batch.tokens[:4], batch.tokens[4:], batch.mask[:4], batch.mask[4:])
    for real, generated, acted, sampled in zip(*rows, strict=True):
        start, begun = int(acted.long().argmax()), int(sampled.long().argmax())
        assert start == begun
        assert real[:start].tolist() == generated[:begun].tolist()
        assert 1 <= int(sampled.sum()) <= 7
    assert datamodule._frozen is not None
    with datamodule._frozen.use("opponent") as model:
        again = sequence_logprobs(model, batch.tokens, batch.mask).sum(1)
    torch.testing.assert_close(batch.opponent_logprob, again)
    assert module.loss == "spin"


def test_the_loss_is_the_functions(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule], tiny_policy_folder: Path
) -> None:
    datamodule, metrics = data(batch_size=8), Metrics()
    module = fit(datamodule, loss="kliep", callbacks=[metrics])
    zero = torch.zeros(1)
    assert metrics.steps[0]["train/loss"] == pytest.approx(float(self_play_loss("kliep", zero, zero)), abs=1e-5)
    assert metrics.steps[0]["train/demonstrated"] == pytest.approx(0.0, abs=1e-4)
    assert (weights(module) - untrained(tiny_policy_folder)).norm() > 1e-4


def test_accumulated_micro_batches_are_one_batch(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule], tiny_policy_folder: Path
) -> None:
    start = untrained(tiny_policy_folder)
    whole = weights(fit(data(batch_size=8)))
    parts = weights(fit(data(batch_size=2), accumulate_grad_batches=4))
    assert (whole - start).norm() > 1e-4
    assert (whole - parts).norm() < 1e-4 * (whole - start).norm()


@pytest.mark.parametrize("loss", ["spin", "bernoulli", "brier", "hinge", "kliep"])
def test_demonstrations_gain_on_own_answers(
    loss: str, fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule]
) -> None:
    metrics = Metrics()
    adam = partial(torch.optim.Adam, lr=3e-3)
    fit(data(batch_size=8), loss=loss, optimizer=adam, max_steps=6, max_epochs=-1, callbacks=[metrics])
    last = metrics.steps[-1]
    assert last["train/demonstrated"] > 1.0
    assert last["train/demonstrated"] > last["train/generated"] + 1.0
    assert last["train/preferred"] > 0.8


def test_the_opponent_is_an_adapter_on_the_trained_base(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule], tiny_policy_folder: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tiny_policy_folder, tmp_path / "adapter")
    datamodule = data(adapter)
    fit(datamodule, policy=PolicySpec(source=adapter, lora=LoraSpec(rank=2, alpha=4.0)))
    assert datamodule._frozen is not None
    assert datamodule._frozen.is_shared


def test_validation_counts_pairs(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule], tmp_path: Path
) -> None:
    metrics = Metrics()
    fit(data(validation=0.25), callbacks=[metrics], max_epochs=1, max_steps=-1)
    assert 0.0 <= metrics.steps[-1].get("validation/preferred", 0.0) <= 1.0


def test_a_run_goes_on_where_it_stopped(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule], tiny_policy_folder: Path, tmp_path: Path
) -> None:
    datamodule = data(batch_size=2, tokenizer=str(tiny_policy_folder))
    datamodule.setup("fit")
    module = SelfPlay(PolicySpec(source=str(tiny_policy_folder)))
    module.configure_model()
    datamodule.attach_policy(module.policy, module.policy_spec, module.tokenizer)
    loader = datamodule.train_dataloader()
    batches = iter(loader)
    next(batches)
    saved, expected = loader.state_dict(), next(batches)
    other = data(batch_size=2, tokenizer=str(tiny_policy_folder))
    other.setup("fit")
    other.attach_policy(module.policy, module.policy_spec, module.tokenizer)
    resumed = other.train_dataloader()
    resumed.load_state_dict(saved)
    result = next(iter(resumed))
    assert result.tokens.tolist() == expected.tokens.tolist()


def test_another_start_is_refused(
    fit: Callable[..., SelfPlay], data: Callable[..., SelfPlayDataModule], tiny_policy_folder: Path, tmp_path: Path
) -> None:
    other = write_weaker_policy(tiny_policy_folder, tmp_path / "other")
    with pytest.raises(InputError, match=r"does not start as its opponent.*data\.opponent"):
        fit(data(other))


def test_bad_options(data: Callable[..., SelfPlayDataModule]) -> None:
    with pytest.raises(InputError, match="temperature"):
        data(sampling=SamplingOptions(7, 0.0))
    with pytest.raises(ValueError, match="kind"):
        SelfPlay(PolicySpec(source="nowhere"), loss="orpo")  # type: ignore[arg-type]


def test_the_last_turn() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1]]).bool()
    turn = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    assert last_turn(mask).tolist() == turn.tolist()


def untrained(folder: Path) -> torch.Tensor:
    """The weights that training starts from."""
    module = SelfPlay(PolicySpec(source=str(folder)))
    module.configure_model()
    return weights(module)
