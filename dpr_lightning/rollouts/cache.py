"""Keys and values of answers being written, with room for what comes."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_ROOM = 64
"""Tokens of room that a full layer gets: what is there already is copied once for so many steps."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, at the beginning of tensors that have room for more tokens.

    transformers' own joins old and new at every token, which reads and writes all there is. Here a token costs what it
    takes to write it, and a row that ends is replaced by the last one.

    Args:
        longest: tokens that a row will have at most.
    """

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._longest = longest
        self._held: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, heads, new, width] behind the others; returns all of them, as views."""
        if not self.is_initialized:
            # What is read at first is kept as it came: it will be copied for each sample anyway.
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._hold([key_states, value_states])
            return self.keys, self.values
        length, new = self.keys.shape[-2], key_states.shape[-2]
        if length + new > self._held[0].shape[-2]:
            room = max(length + new, min(length + new + _ROOM, self._longest))
            self._held = [_with_room(part, room) for part in (self.keys, self.values)]
        for held, part in zip(self._held, (key_states, value_states), strict=True):
            held[: len(part), :, length : length + new] = part
        self._show(len(key_states), length + new)
        return self.keys, self.values

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Put the rows ``source`` in the places ``target``, and drop all but the first ``rows``."""
        for held in self._held:
            held[target] = held[source]
        self._show(rows, self.keys.shape[-2])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """``repeats`` copies of every row, next to each other."""
        self._hold([part.repeat_interleave(repeats, 0) for part in (self.keys, self.values)])

    def _hold(self, parts: list[Tensor]) -> None:
        self._held = parts
        self.keys, self.values = parts

    def _show(self, rows: int, length: int) -> None:
        self.keys, self.values = (held[:rows, :, :length] for held in self._held)


def _with_room(part: Tensor, length: int) -> Tensor:
    roomy = part.new_empty(*part.shape[:2], length, part.shape[-1])
    roomy[:, :, : part.shape[-2]] = part
    return roomy


def growing_cache(model: nn.Module, longest: int) -> DynamicCache:
    """An empty cache for rows of up to ``longest`` tokens.

    Layers of other kinds (sliding windows, recurrent states) stay transformers' own.
    """
    cache = DynamicCache(config=cast(Any, model.config))
    cache.layers = [RoomyLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: Cache, order: Tensor) -> None:
    """Keep the rows ``order`` of a cache, in that order."""
    place = torch.arange(len(order), device=order.device)
    moved = (order != place).nonzero().squeeze(1)
    source = order[moved]
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.move(source, moved, len(order))
        else:
            cast(Any, layer).batch_select_indices(order)


def fill_gaps(ended: Tensor) -> Tensor:
    """The rows that go on, in an order that moves few: the last ones take the places of those that ended [B]."""
    going = (~ended).nonzero().squeeze(1)
    rows = len(going)
    order = torch.arange(rows, device=ended.device)
    order[ended[:rows]] = going[going >= rows]
    return order
