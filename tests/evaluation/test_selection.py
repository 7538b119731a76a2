"""Best of n, whole and chunk by chunk, against what it must pick."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.selection import best_of
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.types import Rollouts

PROMPTS = [[5, 6], [7, 8, 9]]
STOP, PAD = [1], 0


@pytest.fixture(scope="module")
def policy(tiny_policy_folder: Path) -> nn.Module:
    return build_policy(PolicySpec(source=str(tiny_policy_folder)), trainable=False)[0]


def total(rollouts: Rollouts) -> Tensor:
    """A reward of which all candidates have different sums."""
    return torch.where(rollouts.mask, rollouts.tokens.double().sqrt(), 0.0).sum(1)


def test_best_of_n_is_the_best_of_the_samples(policy: nn.Module) -> None:
    picked = best_of(policy, total, PROMPTS, SamplingOptions(6), candidates=8, stop_tokens=STOP, pad_token=PAD, seed=3)
    everything = sample(policy, PROMPTS, SamplingOptions(6), stop_tokens=STOP, pad_token=PAD, num_samples=8, seed=3)
    best = total(everything).reshape(2, 8).argmax(1) + torch.tensor([0, 8])
    for row, index in enumerate(best.tolist()):
        assert (
            picked.tokens[row][picked.mask[row]].tolist() == everything.tokens[index][everything.mask[index]].tolist()
        )
        assert bool(picked.terminated[row]) == bool(everything.terminated[index])
    assert picked.prompt.tolist() == [0, 1]


@pytest.mark.parametrize("chunk", [1, 2, 4, None])
def test_answers_are_whole_and_their_log_probabilities_are_the_policys(policy: nn.Module, chunk: int | None) -> None:
    picked = best_of(
        policy, total, PROMPTS, SamplingOptions(5), candidates=3, chunk=chunk, stop_tokens=STOP, pad_token=PAD,
        num_samples=2, seed=1,
    )  # fmt: skip
    assert picked.prompt.tolist() == [0, 0, 1, 1]
    for row, prompt in enumerate([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]):
        start = int(picked.mask[row].long().argmax())
        assert picked.tokens[row, :start].tolist() == prompt
        answer = picked.tokens[row][picked.mask[row]].tolist()
        assert bool(picked.terminated[row]) == (answer[-1] in STOP)
        assert len(answer) == 5 or answer[-1] in STOP
        assert not set(answer[:-1]) & set(STOP)
    expected = sequence_logprobs(policy, picked.tokens, picked.mask)
    torch.testing.assert_close(picked.logprob, expected, atol=1e-4, rtol=0)


def test_every_token_chosen_greedily_by_the_reward(policy: nn.Module) -> None:
    """With a chunk of one token and many candidates, each token is the best of those the policy would write."""
    picked = best_of(
        policy, total, [[5, 6]], SamplingOptions(3), candidates=2000, chunk=1, stop_tokens=STOP, pad_token=PAD
    )
    vocabulary = policy.config.vocab_size  # type: ignore[union-attr]
    assert picked.tokens[0, 2:].tolist() == [vocabulary - 1] * 3


def test_one_candidate_is_plain_sampling(policy: nn.Module) -> None:
    picked = best_of(policy, total, PROMPTS, SamplingOptions(6), candidates=1, stop_tokens=STOP, pad_token=PAD, seed=5)
    plain = sample(policy, PROMPTS, SamplingOptions(6), stop_tokens=STOP, pad_token=PAD, seed=5)
    assert picked.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.parametrize(
    "options", [{"candidates": 0}, {"candidates": 2, "chunk": 0}, {"candidates": 2, "num_samples": 0}]
)
def test_counts_start_at_one(policy: nn.Module, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="count from 1"):
        best_of(policy, total, PROMPTS, SamplingOptions(2), stop_tokens=STOP, pad_token=PAD, **options)  # type: ignore[arg-type]
