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
from dpr_lightning.engine import Part, state_logits
from dpr_lightning.errors import InputError
from dpr_lightning.functional import dft_loss, gce_loss, iq_learn_loss, sft_loss, token_logprobs
from dpr_lightning.modules import GCESpec, IQLearnSpec, ScheduleSpec, SupervisedIRL, TrimSpec
from dpr_lightning.modules.noise_robust import TokenImitation
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


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_tokens_are_trimmed_from_a_share_of_the_run_on(
    weight: float, demonstrations: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    metrics = Metrics()
    trim = TrimSpec(1e-3, 0.0, after=0.5, weight=weight)
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), trim=trim)
    data = DemonstrationDataModule(demonstrations, batch_size=2, cache_dir=str(tmp_path), validation=None)
    trainer(max_steps=4, callbacks=[metrics]).fit(module, datamodule=data)
    shares = [step["train/trimmed_share"] for step in metrics.steps]
    assert shares[:2] == [0.0, 0.0]
    assert all(share > 0.5 for share in shares[2:])  # all that are no first choice
    for step in metrics.steps[2:]:
        learnt = 1 - (1 - weight) * step["train/trimmed_share"]
        assert step["train/loss"] < learnt * step["train/nll"]  # trimmed tokens have the higher losses
    assert "train/trimmed_share" in module.train_metrics


@pytest.mark.parametrize("of_tokens", [sft_loss, dft_loss, partial(gce_loss, q=0.5)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.03])
def test_a_trimmed_token_has_a_small_weight(of_tokens: Any, weighted: bool, weight: float) -> None:
    logprob = torch.tensor([0.9, 0.04, 0.04, 0.3], dtype=torch.float64).log()
    best = torch.tensor([0.9, 0.95, 0.45, 0.6], dtype=torch.float64).log()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) if weighted else torch.ones(4)
    count, trim = torch.tensor(5.0, dtype=torch.float64), TrimSpec(weight=weight)
    loss = TokenImitation(of_tokens, count, weights if weighted else None, trim)
    result = loss(leaf := logprob.clone().requires_grad_(), Part(slice(0, 4), best))
    of_trim = torch.tensor([1.0, weight, 1.0, 1.0])  # of the third, no token has half of the probability
    every = torch.ones(1, 4, dtype=torch.bool)
    expected = of_tokens((same := logprob.clone().requires_grad_())[None], every, count, (weights * of_trim)[None])
    torch.testing.assert_close(result, expected, check_dtype=False)
    torch.testing.assert_close(torch.autograd.grad(result, leaf), torch.autograd.grad(expected, same))
    assert loss.trimmed == 1


def test_an_impossible_token_that_is_trimmed_adds_nothing() -> None:
    logprob, best = torch.tensor([-torch.inf, -0.1]), torch.tensor([-0.1, -0.1])
    result = TokenImitation(sft_loss, torch.tensor(2.0), trim=TrimSpec(weight=0.0))(logprob, Part(slice(0, 2), best))
    torch.testing.assert_close(result, torch.tensor(0.05))


def test_gce_is_between_sft_and_dft() -> None:
    logprob = torch.tensor([[0.9, 0.2, 1e-6, 0.5]], dtype=torch.float64).log().requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    probability = logprob.detach().exp() * mask
    torch.testing.assert_close(gce_loss(logprob, mask, 2.0, q=1.0), (1 - probability)[mask].sum() / 2.0)
    torch.testing.assert_close(gce_loss(logprob, mask, 2.0, q=1e-9), sft_loss(logprob, mask, 2.0), rtol=1e-6, atol=0)
    for q in (0.3, 1.0):
        gradient = torch.autograd.grad(gce_loss(logprob, mask, 2.0, q=q), logprob)[0]
        torch.testing.assert_close(gradient, -(probability**q) * mask / 2.0)
    dft = torch.autograd.grad(dft_loss(logprob, mask, 2.0), logprob)[0]
    torch.testing.assert_close(gradient, dft)
    for q in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="q must be in"):
            gce_loss(logprob, mask, 2.0, q=q)


def test_gce_begins_after_a_share_of_the_run(
    demonstrations: str, tiny_policy_folder: Path, trainer: Trainers, tmp_path: Path
) -> None:
    metrics = Metrics()
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), "gce", gce=GCESpec(0.5, after=0.5))
    data = DemonstrationDataModule(demonstrations, batch_size=2, cache_dir=str(tmp_path), validation=None)
    trainer(max_steps=4, callbacks=[metrics]).fit(module, datamodule=data)
    for index, step in enumerate(metrics.steps):
        assert (step["train/loss"] == pytest.approx(step["train/nll"])) == (index < 2)
        assert step["train/loss"] < 2.0 or index < 2  # 1/q bounds it


@pytest.mark.parametrize(
    "options",
    [{"margin": 0.0}, {"margin": float("nan")}, {"sure": 1.0}, {"sure": -0.1}, {"after": 1.5}, {"weight": 1.0}],
)
def test_impossible_limits_are_refused(options: dict[str, float], tiny_policy_folder: Path) -> None:
    for impossible in ({"q": 0.0}, {"q": 1.5}, {"after": -0.1}):
        with pytest.raises(InputError, match="`gce`"):
            GCESpec(**impossible)
    with pytest.raises(InputError, match="`trim`"):
        TrimSpec(**options)
    with pytest.raises(InputError, match="`iq_learn` takes no"):
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
    with pytest.raises(InputError, match="sft, iq_learn, dft and gce"):
        SupervisedIRL(PolicySpec(source="x"), "ppo")  # type: ignore[arg-type]
