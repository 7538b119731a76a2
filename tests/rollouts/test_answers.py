"""Answers of many lengths side by side, against the lists they were made from."""

import torch

from dpr_lightning.rollouts.answers import Answers, joined

PROMPTS = [[11], [12, 13, 14], [15, 16]]
TOKENS = [[[1, 2, 3], [4]], [[5], [6, 7]], [[8, 9, 10, 3, 2], [1]]]


def test_prompts_whose_answers_differ_in_length() -> None:
    logprobs = [[[-0.5 * token for token in answer] for answer in group] for group in TOKENS]
    answers = [Answers.of(written, drawn, [True, False]) for written, drawn in zip(TOKENS, logprobs, strict=True)]
    found = joined(PROMPTS, answers, [7, 8, 9], pad_token=0)
    rows = [
        (prompt, answer, drawn)
        for prompt, group, scores in zip(PROMPTS, TOKENS, logprobs, strict=True)
        for answer, drawn in zip(group, scores, strict=True)
    ]
    assert found.tokens.shape == (6, 7)
    assert found.logprob.shape == (6, 5)
    for place, (prompt, answer, drawn) in enumerate(rows):
        written = [*prompt, *answer]
        assert found.tokens[place].tolist() == written + [0] * (7 - len(written))
        assert found.mask[place].nonzero().flatten().tolist() == list(range(len(prompt), len(written)))
        torch.testing.assert_close(found.logprob[place], torch.tensor(drawn + [0.0] * (5 - len(drawn))))
    assert found.terminated.tolist() == [True, False] * 3
    assert found.prompt.tolist() == [7, 7, 8, 8, 9, 9]
