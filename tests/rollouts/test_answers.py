"""Answers of many lengths side by side, against the lists they were made from."""

import torch

from dpr_lightning.rollouts.answers import Answers, joined

PROMPTS = [[11], [12, 13, 14], [15, 16]]
TOKENS = [[[1, 2, 3], [4]], [[5], [6, 7]], [[8, 9, 10, 3, 2], [1]]]


def test_prompts_whose_answers_differ_in_length() -> None:
    logprobs = [[[-0.5 * token for token in answer] for answer in group] for group in TOKENS]
    answers = [Answers.of(tokens, sampled, [True, False]) for tokens, sampled in zip(TOKENS, logprobs, strict=True)]
    result = joined(PROMPTS, answers, [7, 8, 9], pad_token=0)
    rows = [
        (prompt, answer, sampled)
        for prompt, group, scores in zip(PROMPTS, TOKENS, logprobs, strict=True)
        for answer, sampled in zip(group, scores, strict=True)
    ]
    assert result.tokens.shape == (6, 7)
    assert result.logprob.shape == (6, 5)
    for index, (prompt, answer, sampled) in enumerate(rows):
        tokens = [*prompt, *answer]
        assert result.tokens[index].tolist() == tokens + [0] * (7 - len(tokens))
        assert result.mask[index].nonzero().flatten().tolist() == list(range(len(prompt), len(tokens)))
        torch.testing.assert_close(result.logprob[index], torch.tensor(sampled + [0.0] * (5 - len(sampled))))
    assert result.terminated.tolist() == [True, False] * 3
    assert result.prompt.tolist() == [7, 7, 8, 8, 9, 9]
