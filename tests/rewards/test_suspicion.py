"""Suspicion of tokens and rows that were trained on, against the plain model and a run that memorises a mistake."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpr_lightning.rewards.suspicion import (
    checkpoint_scores,
    suspicion,
    suspicious_tokens,
    token_threshold,
)


def test_scores_are_those_of_the_plain_model(tiny_policy_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 20, (4, 9), generator=generator)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[0, 3:7], mask[1, 5:], mask[2, 2:5], mask[2, 7] = True, True, True, True  # one row with a gap, one without
    seen: list[int] = []
    scores = checkpoint_scores(model, tokens, mask, progress=seen.append)
    assert sum(seen) == 4
    logprobs = model(input_ids=tokens).logits.log_softmax(-1)
    for row in range(4):
        columns = mask[row].nonzero().squeeze(1)
        states = logprobs[row, columns - 1]
        expected = states.gather(1, tokens[row, columns, None]).squeeze(1)
        torch.testing.assert_close(scores.logprob[row, : len(columns)], expected)
        torch.testing.assert_close(scores.margin[row, : len(columns)], states.amax(1) - expected)
        assert not scores.logprob[row, len(columns) :].any()
    assert (scores.margin >= 0).all()


MASK = torch.tensor([[False, True, True, True], [False, False, True, True]])


def test_suspicion_is_the_mean_over_checkpoints_and_tokens() -> None:
    early = torch.tensor([[4.0, 0.0, 2.0], [6.0, 1.0, 9.0]])
    late = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 9.0]])
    result = suspicion([early, late], MASK)
    assert result.token.tolist() == [[2.0, 0.0, 1.5], [4.0, 0.5, 0.0]]
    assert result.row.tolist() == pytest.approx([3.5 / 3, 2.25])
    assert result.mask.tolist() == [[True, True, True], [True, True, False]]


def test_a_rare_fact_stays_in_rows_that_are_not_suspicious() -> None:
    result = suspicion([torch.tensor([[2.0, 0.0, 1.5], [4.0, 0.5, 0.0]])], MASK)
    assert suspicious_tokens(result, torch.tensor([1]), 1.0).tolist() == [[False] * 3, [True, False, False]]
    every = suspicious_tokens(result, torch.tensor([True, True]), 1.0)
    assert every.sum() == 3


def test_the_threshold_leaves_a_share_of_all_tokens() -> None:
    token = torch.arange(100.0).reshape(4, 25)
    result = suspicion([token], torch.ones(4, 25, dtype=torch.bool))
    assert (result.token > token_threshold(result, 0.03)).sum() == 3
    assert token_threshold(result, 1.0) == 0.0
