"""Decoding with this package's cache: preallocated keys and values, and the states of recurrent layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from dpr_lightning.engine.cache_argument import cache_argument
from dpr_lightning.engine.decoding.kv_cache import (
    PreallocatedKVLayer,
    can_join,
    is_recurrent,
    join_layers,
    keep_rows,
    preallocated_cache,
    repeat_rows,
)
from dpr_lightning.engine.decoding.one_token import OneTokenPass
from dpr_lightning.engine.decoding.shared_prompt_cache import SharedPromptCache
from dpr_lightning.engine.forward import last_logits


class CachedState:
    """Keys, values and states of rows, as :class:`dpr_lightning.engine.decoding.decoder_state.DecoderState`.

    Prompts of different lengths are padded on the left; with recurrent layers, whose states padding would change,
    prompts of each length are read separately and joined afterwards.

    Args:
        model: that decodes.
        longest: tokens of an answer at most.
        one_token: reads one more token; None: the model's forward pass does.

    Raises:
        ValueError: the model takes no cache of transformers.

    Attributes:
        cache: keys and values; without those of prompts where :attr:`prompt_keys` has them.
        prompt_keys: keys and values of prompts, stored once for all their answers.
        attention: [B, T], 0 where a row has no token; None: nowhere.
        position: [B], of each row's next token.
    """

    cache: Any
    prompt_keys: SharedPromptCache | None
    attention: Tensor | None
    position: Tensor

    def __init__(self, model: nn.Module, longest: int, one_token: OneTokenPass | None = None) -> None:
        self.model, self.one_token, self._longest = model, one_token, longest
        layers = preallocated_cache(model, 0).layers
        self.joins = all(map(can_join, layers))
        self.pads = not any(map(is_recurrent, layers))
        self._argument = cache_argument(model)
        # Models with recurrent layers alone need not take a mask.
        self._attends = any(isinstance(layer, CacheLayerMixin) for layer in layers)
        self._parts: list[DynamicCache] = []

    def prefill(self, tokens: Tensor, attention: Tensor | None, width: int) -> Tensor:
        """As in :class:`DecoderState`."""
        cache = preallocated_cache(self.model, width + self._longest)
        self._parts.append(cache)
        position = None if attention is None else (attention.cumsum(1) - 1).clamp_min(0)
        return self._forward(cache, tokens, attention, position)

    def start(self, attention: Tensor | None, length: Tensor, num_samples: int) -> None:
        """As in :class:`DecoderState`."""
        self.cache, self._parts = _joined(self._parts), []
        self.attention, self.prompt_keys = attention, None
        if self.one_token is not None and num_samples > 1:
            self.prompt_keys = self._share(num_samples)
        else:
            repeat_rows(self.cache, len(length), num_samples)
        if attention is not None:
            self.attention = attention.repeat_interleave(num_samples, 0)
        self.position = length.repeat_interleave(num_samples, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """As in :class:`DecoderState`."""
        if self.attention is not None:
            self.attention = torch.cat([self.attention, self.attention.new_ones(len(self.attention), 1)], 1)
        if self.one_token is not None:
            # Answers, whose prompts are elsewhere, have no padding.
            mask = None if self.attention is None or self.prompt_keys is not None else self.attention.bool()
            logits = self.one_token(tokens, self.position, mask, self.cache.layers, self.prompt_keys)
        else:
            logits = self._forward(self.cache, tokens.unsqueeze(1), self.attention, self.position.unsqueeze(1))
        self.position = self.position + 1
        return logits

    def advance(self, tokens: int) -> bool:
        """Called where memory is counted: lengthen every row as so many steps do, without their keys and values.

        Returns:
            False: the cache has layers of other kinds, and nothing has changed.
        """
        if not all(isinstance(layer, PreallocatedKVLayer) for layer in self.cache.layers):
            return False
        for layer in self.cache.layers:
            layer.lengthen(len(self.position), tokens)
        if self.attention is not None:
            self.attention = self.attention.new_ones(len(self.attention), self.attention.shape[1] + tokens)
        self.position = self.position + tokens
        return True

    def select(self, order: Tensor) -> None:
        """As in :class:`DecoderState`."""
        keep_rows(self.cache, order)
        if self.prompt_keys is not None:
            self.prompt_keys.keep(order)
        self.position = self.position[order]
        if self.attention is not None:
            self.attention = self.attention[order]

    def _forward(
        self, cache: DynamicCache, tokens: Tensor, attention: Tensor | None, position: Tensor | None
    ) -> Tensor:
        """Logits [B, V] after ``tokens`` [B, T] that follow those in the cache."""
        inputs: dict[str, Any] = {"input_ids": tokens, self._argument: cache, "use_cache": True}
        if self._attends:
            inputs |= {"attention_mask": attention, "position_ids": position}
        return last_logits(self.model, **inputs)

    def _share(self, num_samples: int) -> SharedPromptCache:
        """Move the prompts' keys from the cache to a shared one; the cache is then for the answers' tokens."""
        seen = None if self.attention is None else self.attention.bool()
        layers = []
        for index, layer in enumerate(self.cache.layers):  # one at a time, to copy no more than a layer
            layers.append((layer.keys.contiguous(), layer.values.contiguous()))
            self.cache.layers[index] = PreallocatedKVLayer(self._longest)
        return SharedPromptCache(layers, seen, num_samples)


def _joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One cache of all rows; the parts are emptied, one layer after the other."""
    first: Any = caches[0]
    if len(caches) > 1:
        for index in range(len(first.layers)):
            parts: list[Any] = [cache.layers[index] for cache in caches]
            for cache in caches:
                cache.layers[index] = PreallocatedKVLayer(0)
            first.layers[index] = join_layers(parts)
    return caches[0]
