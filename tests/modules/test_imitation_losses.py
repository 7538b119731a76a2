"""Imitation: the module's loss is the function's, χ² warms up, logs speak for the whole step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from transformers import AutoModelForCausalLM

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.engine import state_logits
from dpr_lightning.errors import InputError
from dpr_lightning.functional import dft_loss, iq_learn_loss, token_logprobs
from dpr_lightning.modules import IQLearnSpec, ScheduleSpec, SupervisedIRL, TrimSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import DemonstrationBatch
from tests.modules.conftest import weights
from tests.training import Metrics, write_demonstrations

Trainers = Callable[..., lightning.Trainer]
TOKENS = torch.randint(3, 60, (4, 9), generator=torch.Generator().manual_seed(5))
# A reply, two turns with a gap, a reply cut at the length limit, and a blank row.
MASK = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1],
                     [0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()  # fmt: skip
TERMINATED = torch.tensor([True, True, False, False])


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "rows.jsonl")


class Trainer:
    """As much of a trainer as a loss asks for."""

    def __init__(self, global_step: int) -> None:
        self.global_step = global_step


@pytest.mark.parametrize("value_form", ["value_expert", "v0"])
@pytest.mark.parametrize(
    ("step", "warmup", "share"), [(0, 0, 1.0), (5, 0, 1.0), (0, 10, 0.0), (4, 10, 0.4), (99, 10, 1.0)]
)
def test_iq_learn_is_that_of_the_whole_sequence(
    value_form: Any, step: int, warmup: int, share: float, tiny_policy_folder: Path
) -> None:
    """Logits taken at acted states alone give what the whole sequence gives, the state after a cut included."""
    options = IQLearnSpec(value_form, discount=0.9, chi2_alpha=0.5, chi2_warmup_steps=warmup)
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), "iq_learn", options)
    module.policy = AutoModelForCausalLM.from_pretrained(tiny_policy_folder, dtype=torch.float64)
    trainer = Trainer(step)
    module.trainer = trainer  # type: ignore[assignment]
    batch = DemonstrationBatch(TOKENS, MASK, TERMINATED, torch.tensor(26.0), torch.arange(4))
    result = module._iq_learn_loss(state_logits(module.policy, batch.tokens, batch.mask), batch)
    logits = module.policy(input_ids=TOKENS).logits
    total = sum(
        iq_learn_loss(
            logits[row : row + 1], TOKENS[row : row + 1, 1:], MASK[row : row + 1, 1:], TERMINATED[row : row + 1], 0.9,
            value_form, 0.5 / share if share else None, normaliser=1.0,
        )
        for row in range(4)
    )  # fmt: skip
    torch.testing.assert_close(result, total / 26.0, atol=1e-12, rtol=0)


def test_gradient_of_a_step_is_that_of_the_plain_model(
    demonstrations: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    module = SupervisedIRL(
        PolicySpec(source=str(tiny_policy_folder)),
        "dft",
        optimizer=partial(torch.optim.SGD, lr=1.0),
        schedule=ScheduleSpec("constant", 0.0),
    )
    batches: list[DemonstrationBatch] = []

    class Keep(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batches.append(batch)

    data = DemonstrationDataModule(demonstrations, batch_size=3, cache_dir=str(tmp_path), validation=None)
    trainer(max_steps=1, accumulate_grad_batches=2, callbacks=[Keep()]).fit(module, datamodule=data)
    plain = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    total = sum(int(batch.mask.sum()) for batch in batches)
    for batch in batches:
        assert float(batch.num_tokens) == total
        logprob = token_logprobs(plain(batch.tokens).logits[:, :-1], batch.tokens[:, 1:])
        dft_loss(logprob, batch.mask[:, 1:], total).backward()
    expected = torch.cat([(weight - weight.grad).detach().flatten() for weight in plain.parameters()])
    torch.testing.assert_close(weights(module), expected, atol=1e-6, rtol=0)


def test_tokens_are_trimmed_from_a_share_of_the_run_on(
    demonstrations: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    metrics = Metrics()
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), trim=TrimSpec(1e-3, 0.0, after=0.5))
    data = DemonstrationDataModule(demonstrations, batch_size=2, cache_dir=str(tmp_path), validation=None)
    trainer(max_steps=4, callbacks=[metrics]).fit(module, datamodule=data)
    shares = [step["train/trimmed_share"] for step in metrics.steps]
    assert shares[:2] == [0.0, 0.0]
    assert all(share > 0.5 for share in shares[2:])  # all that are no first choice
    for step in metrics.steps[2:]:
        assert step["train/loss"] < (1 - step["train/trimmed_share"]) * step["train/nll"]
    assert "train/trimmed_share" in module.train_metrics


@pytest.mark.parametrize(
    "options", [{"margin": 0.0}, {"margin": float("nan")}, {"sure": 1.0}, {"sure": -0.1}, {"after": 1.5}]
)
def test_impossible_limits_are_refused(options: dict[str, float], tiny_policy_folder: Path) -> None:
    with pytest.raises(InputError, match="`trim`"):
        TrimSpec(**options)
    with pytest.raises(InputError, match="`iq_learn` takes all"):
        SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), "iq_learn", trim=TrimSpec())


def test_logged_likelihood_is_that_of_the_whole_step(
    demonstrations: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    def logged(batch_size: int, accumulate: int) -> dict[str, float]:
        metrics = Metrics()
        module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)))
        data = DemonstrationDataModule(demonstrations, batch_size=batch_size, cache_dir=str(tmp_path), validation=None)
        run = trainer(max_steps=1, accumulate_grad_batches=accumulate, callbacks=[metrics])
        run.fit(module, datamodule=data)
        return metrics.steps[0]

    whole, parts = logged(8, 1), logged(2, 4)
    for name in ("nll", "loss", "tokens", "gradient_norm"):
        assert parts[f"train/{name}"] == pytest.approx(whole[f"train/{name}"], rel=1e-4)
    assert whole["train/nll"] == pytest.approx(whole["train/loss"], rel=1e-5)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="sft, iq_learn and dft"):
        SupervisedIRL(PolicySpec(source="x"), "ppo")  # type: ignore[arg-type]
