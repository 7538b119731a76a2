"""A verifier head: read where transformers reads it, silent at first, and learning what a demonstration is."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from transformers import AutoModelForSequenceClassification

from dpr_lightning.callbacks import ReferenceCheckpoints
from dpr_lightning.data import SelfPlayDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import ScheduleSpec, VerifierHead
from dpr_lightning.policies import (
    LoraSpec,
    PolicySpec,
    PolicyStrategy,
    build_verifier_head,
    response_scores,
    score_responses,
)
from dpr_lightning.rollouts import SamplingOptions
from tests.training import Metrics, write_adapter, write_demonstrations

Trainers = Callable[..., lightning.Trainer]


@pytest.fixture
def trained(trainer: Trainers, tiny_policy_folder: Path, tmp_path: Path) -> Callable[..., tuple[VerifierHead, Metrics]]:
    rows = write_demonstrations(tmp_path / "rows.jsonl")

    def run(**options: Any) -> tuple[VerifierHead, Metrics]:
        data = SelfPlayDataModule(
            rows, str(tiny_policy_folder), batch_size=8, sampling=SamplingOptions(7), cache_dir=None, validation=None
        )
        module = VerifierHead(
            PolicySpec(source=str(tiny_policy_folder)),
            optimizer=partial(torch.optim.Adam, lr=1e-2),
            schedule=ScheduleSpec(kind="constant", warmup_fraction=0.0),
        )
        metrics = Metrics()
        saved = ReferenceCheckpoints(str(tmp_path / "kept"), fractions=[])
        trainer(callbacks=[metrics, saved], **options).fit(module, datamodule=data)
        return module, metrics

    return run


def _batch(rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 9, (rows, 9), generator=generator)
    mask = torch.zeros(rows, 9, dtype=torch.bool)
    for row in range(rows):
        mask[row, 2 : 4 + row] = True
    return tokens, mask


def test_a_new_head_says_nothing_and_is_read_at_the_end(tiny_policy_folder: Path) -> None:
    model, tokenizer = build_verifier_head(PolicySpec(source=str(tiny_policy_folder)))
    tokens, mask = _batch()
    assert response_scores(model, tokens, mask).tolist() == [0.0] * 5
    torch.nn.init.normal_(model.score.weight)
    scores = response_scores(model, tokens, mask)
    # What follows the response is nothing to it; what is in it is.
    after = tokens.clone()
    after[0, 4:] = 4
    assert response_scores(model, after, mask)[0] == scores[0]
    within = tokens.clone()
    within[0, 3] = 9
    assert response_scores(model, within, mask)[0] != scores[0]
    # transformers reads it at the last token that is no padding.
    padded = tokens.masked_fill(torch.arange(9) >= mask.long().mul(torch.arange(1, 10)).amax(1, True), 0)
    model.config.pad_token_id = 0
    logits = model(input_ids=padded, attention_mask=padded != 0).logits[:, 0]
    torch.testing.assert_close(logits, scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score_responses(model, tokens, mask, token_budget=12), scores, atol=1e-5, rtol=1e-5)
    assert tokenizer.pad_token_id is not None


def test_it_learns_to_prefer_demonstrations_and_leaves_a_reward_model(
    trained: Callable[..., tuple[VerifierHead, Metrics]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a head has no use for the opponent's log-probabilities")

    monkeypatch.setattr("dpr_lightning.data.opponent_data.sequence_logprobs", refuse)
    module, metrics = trained(max_steps=30)
    losses = [step["train/loss"] for step in metrics.steps]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < 0.3
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept" / "final")
    tokens, mask = _batch()
    expected = score_responses(module.policy.eval(), tokens, mask)
    torch.testing.assert_close(score_responses(saved.eval(), tokens, mask), expected, atol=1e-6, rtol=1e-6)
    # A folder with a head keeps it.
    again, _ = build_verifier_head(PolicySpec(source=str(tmp_path / "kept" / "final")))
    torch.testing.assert_close(score_responses(again.eval(), tokens, mask), expected, atol=1e-6, rtol=1e-6)


def test_what_cannot_carry_a_head_is_refused(tiny_policy_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny_policy_folder, tmp_path / "adapter")
    for spec in (PolicySpec(source=str(adapter)), PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec())):
        with pytest.raises(InputError, match="full model folder"):
            build_verifier_head(spec)
    with pytest.raises(InputError, match="is no policy, but a folder of them"):
        build_verifier_head(PolicySpec(source=str(tmp_path), tokenizer=str(tiny_policy_folder)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="No model with a head"):
        build_verifier_head(PolicySpec(source=str(empty), tokenizer=str(tiny_policy_folder)))


class InLayers(SingleDeviceStrategy, PolicyStrategy):
    """Says what Fsdp2Strategy does."""

    shards_layers = True


def test_fsdp2_is_refused(trainer: Trainers, tiny_policy_folder: Path, tmp_path: Path) -> None:
    """It gathers weights where the whole model is called."""
    rows = write_demonstrations(tmp_path / "rows.jsonl")
    data = SelfPlayDataModule(rows, str(tiny_policy_folder), batch_size=8, cache_dir=None, validation=None)
    module = VerifierHead(PolicySpec(source=str(tiny_policy_folder)))
    with pytest.raises(InputError, match="zero3"):
        trainer(max_steps=1, strategy=InLayers("cpu")).fit(module, datamodule=data)
