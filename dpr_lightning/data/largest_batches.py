"""Batches as large as the options of data allow, for counting memory: every row is of full length."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dpr_lightning.types import DemonstrationBatch, Rollouts, SelfPlayBatch


class RepeatedBatch:
    """A loader that yields one batch some times."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self._times = batch, times

    def __len__(self) -> int:
        """Number of batches."""
        return self._times

    def __iter__(self) -> Iterator[Any]:
        """The batch, so many times."""
        for _ in range(self._times):
            yield self.batch


def largest_demonstrations(rows: int, length: int) -> DemonstrationBatch:
    """Demonstrations [rows, length] of which all tokens but the first are learnt."""
    tokens, mask = _acted(rows, length, length - 1)
    return DemonstrationBatch(tokens, mask, mask[:, -1], mask.sum().float(), torch.arange(rows))


def largest_pairs(demonstrations: DemonstrationBatch, prompt: int, answer: int) -> SelfPlayBatch:
    """Demonstrations with a prompt of one token, and answers of ``answer`` tokens to prompts of ``prompt`` tokens.

    A micro-batch may have both, and is then as wide as its longest answer, with as many actions as its longest
    demonstration.
    """
    rows, length = demonstrations.tokens.shape
    width = max(length, prompt + answer)
    tokens, answered = _acted(rows, width, answer)
    mask = torch.cat([torch.nn.functional.pad(demonstrations.mask, (0, width - length)), answered])
    return SelfPlayBatch(tokens.repeat(2, 1), mask, torch.zeros(2 * rows), torch.tensor(float(rows)))


def largest_samples(prompts: int, num_samples: int, prompt: int, answer: int) -> Rollouts:
    """Answers of ``answer`` tokens to different prompts of ``prompt`` tokens; those to one prompt are adjacent."""
    tokens, mask = _acted(prompts * num_samples, prompt + answer, answer)
    index = torch.arange(prompts).repeat_interleave(num_samples)
    tokens[:, 0] = index
    return Rollouts(tokens, mask, torch.zeros_like(index, dtype=torch.bool), torch.zeros(len(index), answer), index)


def _acted(rows: int, length: int, acted: int) -> tuple[Tensor, Tensor]:
    """Tokens [rows, length], all the same, and the mask of the last ``acted``."""
    mask = (torch.arange(length) >= length - acted).expand(rows, length).contiguous()
    return torch.zeros(rows, length, dtype=torch.int64), mask
