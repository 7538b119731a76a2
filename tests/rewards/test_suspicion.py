"""Suspicion of tokens and rows that were trained on, against the plain model and a run that memorises a mistake."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpr_lightning.rewards.suspicion import (
    CheckpointScores,
    checkpoint_scores,
    combined_suspicion,
    rank_average,
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
    scores = checkpoint_scores(model, tokens, mask, entropy=True, progress=seen.append)
    assert scores.entropy is not None
    assert checkpoint_scores(model, tokens, mask).entropy is None
    assert sum(seen) == 4
    logprobs = model(input_ids=tokens).logits.log_softmax(-1)
    for row in range(4):
        columns = mask[row].nonzero().squeeze(1)
        states = logprobs[row, columns - 1]
        expected = states.gather(1, tokens[row, columns, None]).squeeze(1)
        torch.testing.assert_close(scores.logprob[row, : len(columns)], expected)
        torch.testing.assert_close(scores.margin[row, : len(columns)], states.amax(1) - expected)
        entropy = -(states.exp() * states).sum(1)
        torch.testing.assert_close(scores.entropy[row, : len(columns)], entropy)
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


def test_a_margin_counts_less_where_the_checkpoint_is_undecided() -> None:
    scores = CheckpointScores(torch.zeros(1, 3), torch.tensor([[4.0, 4.0, 0.0]]), torch.tensor([[0.0, 3.0, 1.0]]))
    assert scores.normalised_margin().tolist() == [[4.0, 1.0, 0.0]]


def test_the_rank_average_needs_no_common_unit() -> None:
    nats, shares = torch.tensor([9.0, 1.0, 5.0, 1.0]), torch.tensor([0.2, 0.4, 0.3, 0.1])
    # Ranks from 0: 3, 0.5, 2, 0.5 and 1, 3, 2, 0, of 3 at most.
    assert rank_average([nats, shares]).tolist() == pytest.approx([4 / 6, 3.5 / 6, 4 / 6, 0.5 / 6])
    assert rank_average([1000 * nats, shares.exp()]).tolist() == rank_average([nats, shares]).tolist()
    assert rank_average([torch.tensor([3.0])]).tolist() == [0.0]


def test_combined_suspicion_has_nats_of_tokens_and_ranks_of_rows() -> None:
    memorised = suspicion([torch.tensor([[4.0, 0.0, 2.0], [6.0, 1.0, 0.0]])], MASK)
    crossfitted = suspicion([torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])], MASK)
    result = combined_suspicion([memorised, crossfitted])
    assert result.token.tolist() == [[3.0, 0.0, 1.0], [3.5, 0.5, 0.0]]
    assert result.mask.tolist() == memorised.mask.tolist()
    assert result.row.tolist() == [0.5, 0.5]
