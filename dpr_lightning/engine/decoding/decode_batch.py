"""Answers that are decoded side by side: the rows of one or several models, a token at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_lightning.engine.decoding.decoder_state import DecoderState
from dpr_lightning.engine.decoding.prefill import prefill_prompts
from dpr_lightning.engine.lockstep import Lockstep

Combine = Callable[[list[Tensor]], Tensor]
"""Turns the log-probabilities [B, V] of several models into the logits to sample from."""


def single_model(logprobs: list[Tensor]) -> Tensor:
    """One model, as it is."""
    return logprobs[0]


class DecodeBatch:
    """B answers to some prompts, decoded a token at a time; a row that ends is dropped from every model's state.

    Args:
        states: of each model that decodes, without rows so far.
        combine: turns what they say into logits.
        pad_token: on the left of shorter prompts.
        device: of the models.
        lockstep: notified of every pass.
    """

    def __init__(
        self,
        states: Sequence[DecoderState],
        combine: Combine,
        pad_token: int,
        device: torch.device,
        lockstep: Lockstep,
    ) -> None:
        self.states, self.combine = states, combine
        self._pad_token, self._device, self._lockstep = pad_token, device, lockstep

    def read(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        """Read every prompt once for all its samples, which lie next to each other; logits [B, V] of their first."""
        read = prefill_prompts(self.states, prompts, self._pad_token, self._device, self._lockstep)
        for state in self.states:
            state.start(read.attention, read.length, num_samples)
        return self._combined(read.logits).repeat_interleave(num_samples, 0)

    def step(self, chosen: Tensor) -> Tensor:
        """Read one more token a row [B]; logits [B, V] of the next."""
        self._lockstep.begin()
        return self._combined([state.step(chosen) for state in self.states])

    def keep(self, order: Tensor) -> None:
        """Keep the rows ``order``, in that order."""
        for state in self.states:
            state.select(order)

    def _combined(self, logits: list[Tensor]) -> Tensor:
        # One model's logits serve as they are: what is drawn from them is normalised there.
        return self.combine(
            logits if self.combine is single_model else [part.float().log_softmax(-1) for part in logits]
        )
