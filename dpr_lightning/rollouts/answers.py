"""Answers of many lengths as rows of one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_lightning.errors import InputError
from dpr_lightning.types import Rollouts


@dataclass
class Answers:
    """The K answers to one prompt: tokens and log-probs [K, T], lengths and terminated [K]."""

    tokens: Tensor
    logprob: Tensor
    length: Tensor
    terminated: Tensor

    @classmethod
    def of(
        cls, tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]], terminated: Sequence[bool]
    ) -> "Answers":
        """From lists, one for each answer."""
        length = torch.tensor([len(tokens_of_answer) for tokens_of_answer in tokens])
        width = int(length.max())
        ids = torch.zeros(len(tokens), width, dtype=torch.int64)
        logprob = torch.zeros(len(tokens), width, dtype=torch.float32)
        for row, (tokens_of_answer, logprobs_of_answer) in enumerate(zip(tokens, logprobs, strict=True)):
            ids[row, : len(tokens_of_answer)] = torch.tensor(tokens_of_answer, dtype=torch.int64)
            logprob[row, : len(logprobs_of_answer)] = torch.tensor(logprobs_of_answer, dtype=torch.float32)
        return cls(ids, logprob, length, torch.tensor(terminated))

    def inside(self, width: int) -> Tensor:
        """Which of the first ``width`` tokens belong to each answer, [K, width]; a row may go on behind its end."""
        return torch.arange(width).unsqueeze(0) < self.length.unsqueeze(1)

    @property
    def is_finite(self) -> bool:
        """Whether all log-probabilities of what belongs to answers are numbers."""
        return bool((self.logprob.isfinite() | ~self.inside(self.logprob.shape[1])).all())


def joined(
    prompts: Sequence[Sequence[int]], answers: Sequence[Answers], identities: Sequence[int], pad_token: int
) -> Rollouts:
    """Prompt and answer of each row side by side, padded on the right.

    Args:
        prompts: token ids.
        answers: to each prompt, as many to every one.
        identities: of the prompts.
        pad_token: fills the right of shorter rows.

    Raises:
        InputError: log-probabilities that are not numbers.
    """
    if not all(answer.is_finite for answer in answers):
        raise InputError(
            "The policy gives log-probabilities that are not numbers: its weights are damaged, or training diverged. "
            "Go back to an earlier checkpoint and lower the learning rate."
        )
    num_samples = len(answers[0].length)
    longest_answer = max(int(answer.length.max()) for answer in answers)
    longest = max(len(prompt) + int(answer.length.max()) for prompt, answer in zip(prompts, answers, strict=True))
    count = len(prompts) * num_samples
    tokens = torch.full((count, longest), pad_token)
    mask = torch.zeros(count, longest, dtype=torch.bool)
    logprob = torch.zeros(count, longest_answer, dtype=torch.float32)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        rows = slice(index * num_samples, (index + 1) * num_samples)
        start, width = len(prompt), int(answer.length.max())
        inside = answer.inside(width)
        tokens[rows, :start] = torch.tensor(list(prompt))
        tokens[rows, start : start + width] = torch.where(inside, answer.tokens[:, :width], pad_token)
        mask[rows, start : start + width] = inside
        logprob[rows, :width] = torch.where(inside, answer.logprob[:, :width], 0.0)
    prompt_ids = torch.tensor(list(identities)).repeat_interleave(num_samples)
    return Rollouts(tokens, mask, torch.cat([answer.terminated for answer in answers]), logprob, prompt_ids)
