"""The audit of a reward against counts made by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.audit import RewardAudit, Rewarded, audit_reward, recommend, token_ranks
from dpr_lightning.evaluation.corruption import corrupt_one_token
from dpr_lightning.evaluation.suspects import suspects
from tests.tiny import tiny_tokenizer

GOOD = RewardAudit("r", "one_sided", 0.9, 0.9, 0.05, 0.9, 0.5, 0.8, -0.1, 0.1)


def rewarded(rows: list[list[float]]) -> Rewarded:
    width = max(map(len, rows))
    values = np.array([row + [math.nan] * (width - len(row)) for row in rows])
    return Rewarded(np.nan_to_num(values, nan=-99.0), ~np.isnan(values))


def test_one_token_of_each_row_changes_into_another_that_the_demonstrations_use() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 9, (400, 7), generator=generator)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 2:6] = True
    tokens[:, 5], tokens[:, 0] = 1, 60
    corrupted = corrupt_one_token(tokens, mask, stops=[1], seed=3)
    changed = corrupted.tokens != tokens
    assert changed.sum(1).tolist() == [1] * 400
    rows, columns = changed.nonzero(as_tuple=True)
    assert torch.equal(columns - 2, corrupted.action)
    assert set(columns.tolist()) == {2, 3, 4}
    put, original = corrupted.tokens[rows, columns], tokens[rows, columns]
    pairs = {(int(a), int(b)) for a, b in zip(original, put, strict=True)}
    assert pairs == {(a, b) for a in range(5, 9) for b in range(5, 9) if a != b}
    assert torch.equal(corrupt_one_token(tokens, mask, stops=[1], seed=3).tokens, corrupted.tokens)
    assert not torch.equal(corrupt_one_token(tokens, mask, stops=[1], seed=4).tokens, corrupted.tokens)


@pytest.mark.parametrize("tokens", [[[60, 5, 1], [60, 1, 1]], [[60, 5, 1], [60, 5, 1]]])
def test_nothing_to_corrupt(tokens: list[list[int]]) -> None:
    mask = torch.tensor([[False, True, True]] * 2)
    with pytest.raises(InputError, match=r"no token to corrupt \(row \d\)|all of them use one"):
        corrupt_one_token(torch.tensor(tokens), mask, stops=[1], seed=0)


def test_ranks_count_ties_half_and_ignore_padding() -> None:
    demonstrations = rewarded([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [5.0, -1.0], [7.0]])
    assert token_ranks(demonstrations, np.array([1, 0, 0, 0])).tolist() == [0.0, 0.5, 1.0, 0.0]


def test_an_audit_counted_by_hand() -> None:
    result = audit_reward(
        "half",
        "log_ratio",
        demonstrations=rewarded([[1.0, 1.0], [0.0, 2.0, 1.0]]),
        corrupted=rewarded([[1.0, -3.0], [4.0, -1.0, 0.0]]),
        changed=np.array([1, 0]),
        # Of the second, only the last turn answers what the samples do.
        answered=rewarded([[1.0, 1.0], [1.0]]),
        samples=rewarded([[1.0], [2.0, 1.0], [5.0], [1.0, 1.0]]),
        scores=[0.0, 1.0, 1.0, 0.0],
    )
    # Totals: demonstrations 2 and 3, twins −2 and 3, samples 1, 3 | 5, 2; right are the second and the third.
    assert result.twins == 0.75
    assert result.twins_auc == (1 + 0 + 1 + 0.5) / 4
    assert result.place == 0.5
    assert result.lowest_tenth == 0.5
    assert result.samples_auc == (0.5 + 0.0) / 2
    assert result.verifier_auc == 1.0
    assert result.length_correlation == pytest.approx(0.0)
    assert result.end_share == pytest.approx((1 + 1 + 5 + 1) / 11)
    assert not result.passes


def test_without_a_verdict_there_is_no_agreement() -> None:
    both = rewarded([[1.0, 2.0], [2.0, 1.0]])
    index = np.array([0, 0])
    assert audit_reward("r", "f", both, both, index, both, both).verifier_auc is None
    assert audit_reward("r", "f", both, both, index, both, both, [1.0, 1.0]).verifier_auc is None
    assert audit_reward("r", "f", both, both, index, both, both).length_correlation is None


@pytest.mark.parametrize(
    ("change", "passes"),
    [({}, True), ({"place": 0.2}, False), ({"twins": 0.7}, False), ({"verifier_auc": 0.5}, False),
     ({"verifier_auc": None}, True)],
)  # fmt: skip
def test_what_passes(change: dict[str, float | None], passes: bool) -> None:
    assert dataclasses.replace(GOOD, **change).passes is passes  # type: ignore[arg-type]


def test_the_recommendation_in_words() -> None:
    better = dataclasses.replace(GOOD, reference="early", verifier_auc=0.9, length_correlation=0.7)
    control = dataclasses.replace(GOOD, form="log_policy", verifier_auc=0.85)
    best, words = recommend([GOOD, better, control], "log_policy")
    assert best == better
    assert "`one_sided` against early" in words
    assert "90% of the pairs of samples" in words
    assert "prefers longer responses (rank correlation +0.70)" in words
    assert "needs no reference" not in words
    best, words = recommend([GOOD, control], "log_policy")
    assert best == GOOD
    assert "`log_policy` needs no reference and does as well" in words
    unable = dataclasses.replace(control, place=0.5, verifier_auc=0.99)
    assert "needs no reference" not in recommend([GOOD, unable], "log_policy")[1]
    best, words = recommend([dataclasses.replace(GOOD, place=0.4), control], "log_policy")
    assert best is None
    assert "No reward passes" in words


def test_suspects_are_the_lowest_tokens_with_what_is_around() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["ab=cdef", "gh=ijkl"]
    tokens = torch.tensor([tokenizer.encode(text) for text in texts])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 3:] = True
    mask[1, 6] = False
    reward = torch.tensor([[0.0, -1.0, 0.0, 3.0], [0.0, 2.0, -2.0, -9.0]])
    first, second = suspects(reward, tokens, mask, tokenizer, ["f:1", "f:2"])
    assert (first.where, first.reward, first.before, first.token, first.after) == ("f:2", -2.0, "gh=ij", "k", "")
    assert (second.where, second.before, second.token, second.after) == ("f:1", "ab=c", "d", "ef")


def test_rows_that_were_trained_on_are_ordered_by_their_suspicion() -> None:
    tokenizer = tiny_tokenizer()
    tokens = torch.tensor([tokenizer.encode(text) for text in ("ab=cd", "gh=ij", "gh=ij")])
    mask = torch.tensor([[False, False, False, True, True]] * 3)
    reward = torch.tensor([[-3.0, -0.5], [-1.0, -2.0], [-1.0, -2.0]])
    listed = suspects(reward, tokens, mask, tokenizer, ["f:1", "f:2", "f:2"], suspicion=torch.tensor([1.75, 1.5, 1.5]))
    assert [(row.where, row.token, row.reward, row.mean) for row in listed] == [
        ("f:1", "c", -3.0, -1.75),
        ("f:2", "j", -2.0, -1.5),
    ]
    assert [(row.index, row.action) for row in listed] == [(0, 0), (1, 1)]
    by_rank = suspects(reward, tokens, mask, tokenizer, ["f:1", "f:2", "f:2"], suspicion=torch.tensor([0.2, 0.9, 0.9]))
    assert [row.where for row in by_rank] == ["f:2", "f:1"]
