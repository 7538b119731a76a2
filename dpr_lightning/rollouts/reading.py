"""Prompts, read before they are answered: in parts, so that a batch of long ones takes no more than its keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from dpr_lightning.policies import Lockstep, last_logits, model_device
from dpr_lightning.rollouts.cache import RoomyLayer, growing_cache, join_layers

TOKENS_AT_ONCE = 16384
"""Of prompts that are read together, padding included; one that is longer is read alone."""


@dataclass(frozen=True)
class ReadPrompts:
    """What models keep of G prompts.

    ``logits``: of each model, [G, V] after the last token; ``caches``: of each model, with room for an answer;
    ``attention`` [G, P]: 0 where a prompt, whose end is on the right, has no token; None: nowhere; ``length`` [G].
    """

    logits: list[Tensor]
    caches: list[DynamicCache]
    attention: Tensor | None
    length: Tensor


def read_prompts(
    models: Sequence[nn.Module], prompts: Sequence[Sequence[int]], room: int, pad_token: int, lockstep: Lockstep
) -> ReadPrompts:
    """Read every prompt once.

    Args:
        models: that all read the same.
        prompts: token ids; those of like length should be neighbours.
        room: tokens that will be written behind them.
        pad_token: stands on the left of shorter ones.
        lockstep: told of every pass.
    """
    device = model_device(models[0])
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), pad_token)
    attention = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for place, prompt in enumerate(prompts):
        tokens[place, longest - len(prompt) :] = torch.tensor(list(prompt))
        attention[place, longest - len(prompt) :] = 1
    tokens, attention, length = tokens.to(device), attention.to(device), attention.sum(1).to(device)

    def caches() -> list[DynamicCache]:
        return [growing_cache(model, longest + room) for model in models]

    # Caches of other kinds (windows, states) are not put together here.
    joins = all(isinstance(layer, RoomyLayer) for cache in caches() for layer in cache.layers)
    lengths = [len(prompt) for prompt in prompts]
    parts = list(_parts(lengths, TOKENS_AT_ONCE)) if joins else [slice(0, len(prompts))]
    read: list[list[DynamicCache]] = []
    logits: list[list[Tensor]] = []
    for part in parts:
        column = longest - max(lengths[part])
        read.append(caches())
        lockstep.begin()
        seen = _padded(attention[part, column:])
        position = None if seen is None else (seen.cumsum(1) - 1).clamp_min(0)
        logits.append(
            [
                ask(model, cache, tokens[part, column:], seen, position)
                for model, cache in zip(models, read[-1], strict=True)
            ]
        )
    joined = [_joined(list(each)) for each in zip(*read, strict=True)]
    whole = [torch.cat(each) for each in zip(*logits, strict=True)]
    return ReadPrompts(whole, joined, _padded(attention), length)


def ask(
    model: nn.Module, cache: DynamicCache, tokens: Tensor, attention: Tensor | None, position: Tensor | None
) -> Tensor:
    """Logits [B, V] of a model after it has read ``tokens`` [B, T] behind what is in its cache, by its forward pass."""
    return last_logits(
        model,
        input_ids=tokens,
        attention_mask=attention,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    )


def _parts(lengths: Sequence[int], at_once: int) -> Iterator[slice]:
    """Neighbours that have, padded to the longest of them, at most so many tokens."""
    start, longest = 0, 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if place > start and (place + 1 - start) * longest > at_once:
            yield slice(start, place)
            start, longest = place, length
    yield slice(start, len(lengths))


def _padded(attention: Tensor) -> Tensor | None:
    """The same, or None without padding: no mask is needed then, and attention takes its fastest path."""
    return attention if bool((attention == 0).any()) else None


def _joined(caches: list[DynamicCache]) -> DynamicCache:
    """One cache of all rows; the parts are emptied, one layer after the other."""
    first: Any = caches[0]
    if len(caches) > 1:
        for place in range(len(first.layers)):
            parts: list[Any] = [cache.layers[place] for cache in caches]
            for cache in caches:
                cache.layers[place] = RoomyLayer(0)
            first.layers[place] = join_layers(parts)
    return caches[0]
