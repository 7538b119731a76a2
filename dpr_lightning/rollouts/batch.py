"""Answers being written side by side: what models keep of them from one token to the next."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpr_lightning.policies import Lockstep
from dpr_lightning.rollouts.cache import RoomyLayer, keep_rows
from dpr_lightning.rollouts.one_token import OneTokenPass
from dpr_lightning.rollouts.prompt_keys import PromptKeys
from dpr_lightning.rollouts.reading import ask, read_prompts

Combine = Callable[[list[Tensor]], Tensor]
"""Turns the log-probabilities [B, V] of several models into the logits to sample from."""


def only(logprobs: list[Tensor]) -> Tensor:
    """One model, as it is."""
    return logprobs[0]


class Batch:
    """B answers to some prompts, written a token at a time; one that ends is dropped from every tensor and every cache.

    Args:
        models: that write them together.
        one_token: of each model, how it reads one more token; None: by its own forward pass.
        combine: what they say.
        pad_token: stands on the left of shorter prompts.
        longest: tokens that an answer may have.
        lockstep: told of every pass.

    Attributes:
        caches: of each model, its keys and values; those of prompts are elsewhere where :attr:`prompt_keys` has them.
        prompt_keys: of each model, what it keeps of prompts once for all their answers.
        attention: [B, T], 0 where a row has no token; None: nowhere.
        position: [B], of each row's next token.
    """

    caches: list[Any]
    prompt_keys: list[PromptKeys | None]
    attention: Tensor | None
    position: Tensor

    def __init__(
        self,
        models: Sequence[nn.Module],
        one_token: Sequence[OneTokenPass | None],
        combine: Combine,
        pad_token: int,
        longest: int,
        lockstep: Lockstep,
    ) -> None:
        self.models, self.one_token, self.combine = models, one_token, combine
        self._pad_token, self._longest, self._lockstep = pad_token, longest, lockstep

    def read(self, prompts: Sequence[Sequence[int]], num_samples: int) -> Tensor:
        """Read every prompt once for all its samples, which lie next to each other; logits [B, V] of their first."""
        read = read_prompts(self.models, prompts, self._longest, self._pad_token, self._lockstep)
        self.caches, self.attention, self.position = list(read.caches), read.attention, read.length
        self.prompt_keys = [
            self._share(cache, num_samples) if quick is not None and num_samples > 1 else None
            for cache, quick in zip(self.caches, self.one_token, strict=True)
        ]
        for cache, shared in zip(self.caches, self.prompt_keys, strict=True):
            if shared is None:
                cache.batch_repeat_interleave(num_samples)
        if self.attention is not None:
            self.attention = self.attention.repeat_interleave(num_samples, 0)
        self.position = self.position.repeat_interleave(num_samples, 0)
        return self._combined(read.logits).repeat_interleave(num_samples, 0)

    def step(self, chosen: Tensor) -> Tensor:
        """Read one more token a row [B]; logits [B, V] of the next."""
        mask = self._lengthened(1)
        self._lockstep.begin()
        logits = []
        for place, quick in enumerate(self.one_token):
            if quick is not None:
                shared = self.prompt_keys[place]
                own = mask if shared is None else None  # of its own, a sample has all tokens
                logits.append(quick(chosen, self.position, own, self.caches[place].layers, shared))
            else:
                position = self.position.unsqueeze(1)
                logits.append(
                    ask(self.models[place], self.caches[place], chosen.unsqueeze(1), self.attention, position)
                )
        self.position = self.position + 1
        return self._combined(logits)

    def advance(self, tokens: int) -> None:
        """Take in so many tokens of each row, whose keys and values others have written where there was room."""
        self._lengthened(tokens)
        self.position = self.position + tokens
        for cache in self.caches:
            for layer in cache.layers:
                layer.lengthen(len(self.position), tokens)

    def keep(self, order: Tensor) -> None:
        """Keep the rows ``order``, in that order."""
        for cache, shared in zip(self.caches, self.prompt_keys, strict=True):
            keep_rows(cache, order)
            if shared is not None:
                shared.keep(order)
        self.position = self.position[order]
        if self.attention is not None:
            self.attention = self.attention[order]

    def _lengthened(self, tokens: int) -> Tensor | None:
        if self.attention is None:
            return None
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(self.attention), tokens)], 1)
        return self.attention.bool()

    def _share(self, cache: Any, num_samples: int) -> PromptKeys:
        """Take what was read out of a cache, so that no sample has a copy, and leave room for their own tokens."""
        seen = None if self.attention is None else self.attention.bool()
        read = []
        for place, layer in enumerate(cache.layers):  # of which none is there twice for longer than its own copy takes
            read.append((layer.keys.contiguous(), layer.values.contiguous()))
            cache.layers[place] = RoomyLayer(self._longest)
        return PromptKeys(read, seen, num_samples)

    def _combined(self, logits: list[Tensor]) -> Tensor:
        # One model's logits serve as they are: what is drawn from them is normalised there.
        return self.combine(logits if self.combine is only else [part.float().log_softmax(-1) for part in logits])
