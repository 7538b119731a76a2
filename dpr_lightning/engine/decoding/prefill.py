"""Prefill of prompts, in parts, so that a batch of long ones does not need memory for all activations at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_lightning.engine.decoding.decoder_state import DecoderState
from dpr_lightning.engine.lockstep import Lockstep

TOKENS_AT_ONCE = 16384
"""Tokens of prompts that are read together, padding included; a longer prompt is read alone."""


@dataclass(frozen=True)
class PrefilledPrompts:
    """The result of the prefill of G prompts.

    ``logits``: of each model, [G, V] after the last token; ``attention`` [G, P]: 0 where a prompt, whose end is on the
    right, has no token; None: nowhere; ``length`` [G].
    """

    logits: list[Tensor]
    attention: Tensor | None
    length: Tensor


def prefill_prompts(
    states: Sequence[DecoderState],
    prompts: Sequence[Sequence[int]],
    pad_token: int,
    device: torch.device,
    lockstep: Lockstep,
) -> PrefilledPrompts:
    """Read every prompt once.

    Args:
        states: of the models; all read the same prompts.
        prompts: token ids; those of like length should be neighbours.
        pad_token: on the left of shorter ones.
        device: of the models.
        lockstep: notified of every pass.
    """
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), pad_token)
    attention = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for index, prompt in enumerate(prompts):
        tokens[index, longest - len(prompt) :] = torch.tensor(list(prompt))
        attention[index, longest - len(prompt) :] = 1
    tokens, attention, length = tokens.to(device), attention.to(device), attention.sum(1).to(device)
    logits: list[list[Tensor]] = []
    lengths = [len(prompt) for prompt in prompts]
    # One part of all prompts, where the states of several could not be joined.
    equal, joins = not all(state.pads for state in states), all(state.joins for state in states)
    for part in _parts(lengths, TOKENS_AT_ONCE, equal=equal) if joins else [slice(0, len(prompts))]:
        first = longest - max(lengths[part])
        lockstep.begin()
        padding = _padded(attention[part, first:])
        logits.append([state.prefill(tokens[part, first:], padding, longest) for state in states])
    return PrefilledPrompts([torch.cat(each) for each in zip(*logits, strict=True)], _padded(attention), length)


def _parts(lengths: Sequence[int], at_once: int, *, equal: bool = False) -> Iterator[slice]:
    """Slices of neighbours with at most ``at_once`` tokens, padding included; ``equal``: of one length."""
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        too_many = (index + 1 - start) * longest > at_once
        if index > start and (too_many or (equal and length != lengths[start])):
            yield slice(start, index)
            start, longest = index, length
    yield slice(start, len(lengths))


def _padded(attention: Tensor) -> Tensor | None:
    """``attention``, or None without padding, with which attention takes its fastest path."""
    return attention if bool((attention == 0).any()) else None
