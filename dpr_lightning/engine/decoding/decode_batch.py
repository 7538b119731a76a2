"""A batch of answers, decoded one token at a time by one or several models."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_lightning.engine.decoding.decoder_state import DecoderState
from dpr_lightning.engine.decoding.prefill import prefill_prompts
from dpr_lightning.engine.lockstep import Lockstep

Combine = Callable[[list[Tensor]], Tensor]
"""Turns the log-probabilities [B, V] of several models into the logits to sample from."""


def single_model(logprobs: list[Tensor]) -> Tensor:
    """The logits of the first model, unchanged."""
    return logprobs[0]


class DecodeBatch:
    """B answers to some prompts, decoded a token at a time; a row that ends is dropped from every model's state.

    Args:
        states: of each model, still without rows.
        combine: turns their log-probabilities into logits.
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

    def prefill(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        """Read every prompt once for its adjacent samples; logits [B, V] of their first tokens."""
        prompt_states = prefill_prompts(self.states, prompts, self._pad_token, self._device, self._lockstep)
        for state in self.states:
            state.start(prompt_states.attention, prompt_states.length, num_samples)
        return self._combined(prompt_states.logits).repeat_interleave(num_samples, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row [B]; logits [B, V] of the next."""
        self._lockstep.begin()
        return self._combined([state.step(tokens) for state in self.states])

    def keep(self, order: Tensor) -> None:
        """Keep the rows ``order``, in that order."""
        for state in self.states:
            state.select(order)

    def _combined(self, logits: list[Tensor]) -> Tensor:
        # Logits of one model need no log-softmax here: sampling normalises them.
        return self.combine(
            logits if self.combine is single_model else [part.float().log_softmax(-1) for part in logits]
        )
