"""Keys and values of answers being written, with room for what comes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

_ROOM = 32
"""Tokens of room that a full layer gets: what is there already is copied once for so many steps."""
_JOINED = (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, DummyLayer)
"""Layers of transformers whose parts can be put together: their states have no length, and their keys no window."""


class PreallocatedKVLayer(DynamicLayer):
    """Keys and values of one layer, at the beginning of tensors that have room for more tokens.

    transformers' own joins old and new at every token, which reads and writes all there is. Here a token costs what it
    takes to write it, and a row that ends is replaced by the last one.

    Args:
        longest: tokens that a row will have at most.
    """

    def __init__(self, longest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._longest = longest
        self._held: tuple[Tensor, Tensor]
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, heads, new, width] behind the others; returns all of them, as views."""
        rows, start, end = len(key_states), self._length, self._length + key_states.shape[-2]
        if not self.is_initialized:
            # What is read at first is kept as it came: it will be copied for each sample anyway.
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._held = (key_states, value_states)
            return self._show(rows, end)
        keys, values = self.lengthen(rows, end - start)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return self._show(rows, end)

    def lengthen(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Take in so many more tokens of the first rows, which the caller writes.

        Returns:
            keys and values [rows, heads, room, width], with all their room.
        """
        self.make_room(rows, tokens, spare=_ROOM)
        self._show(rows, self._length + tokens)
        return self.room(rows)

    def make_room(self, rows: int, tokens: int, spare: int = 0) -> None:
        """Have room for so many more tokens of the first rows; where there is none yet, for ``spare`` ones beyond."""
        end = self._length + tokens
        keys, values = (held[:rows, :, : self._length] for held in self._held)
        if end > self._held[0].shape[-2]:
            room = max(end, min(end + spare, self._longest))
            self._held = _with_room(keys, room), _with_room(values, room)

    def write(self, keys: Tensor, values: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, heads, 1, width] of one token a row where ``place`` [1] says, in room there is.

        They count as written when :meth:`lengthen` says so.

        Returns:
            keys and values [B, heads, room, width], with all their room.
        """
        kept = self.room(len(keys))
        for held, new in zip(kept, (keys, values), strict=True):
            held.index_copy_(2, place, new.to(held.dtype))
        return kept

    def room(self, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, room, width] of the first rows, with all their room: zeros where it is."""
        keys, values = self._held
        return keys[:rows], values[:rows]

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Put the rows ``source`` in the places ``target``, and drop all but the first ``rows``."""
        if not self.is_initialized:
            return
        for held in self._held:
            held[target] = held[source]
        self._show(rows, self._length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """``repeats`` copies of every row, next to each other."""
        if repeats == 1:
            return
        keys, values = self._held
        self._held = (keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0))
        self._show(len(self._held[0]), self._length)

    def _show(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Let transformers see what is written, and no room."""
        keys, values = self._held
        self.keys, self.values, self._length = keys[:rows, :, :length], values[:rows, :, :length], length
        return self.keys, self.values


def is_recurrent(layer: Any) -> bool:
    """Whether a layer of a cache has a state that takes in every token, padding as well."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def can_join(layer: Any) -> bool:
    """Whether :func:`join_layers` can put parts of this kind together."""
    return isinstance(layer, PreallocatedKVLayer) or type(layer) in _JOINED


def join_layers(parts: Sequence[Any]) -> Any:
    """The rows of all parts, one below the other; shorter ones end on the right, zeros before them."""
    first = parts[0]
    if isinstance(first, PreallocatedKVLayer):
        result = PreallocatedKVLayer(first._longest)
        result.update(*(_below_each_other([getattr(part, name) for part in parts]) for name in ("keys", "values")))
        return result
    if isinstance(first, DynamicLayer) and first.is_initialized:
        first.keys, first.values = (
            _below_each_other([getattr(part, name) for part in parts]) for name in ("keys", "values")
        )
    if isinstance(first, LinearAttentionLayer):
        for name in ("conv_states", "recurrent_states"):
            states = [getattr(part, name) for part in parts]
            for index, state in states[0].items():
                if state is not None:
                    states[0][index] = torch.cat([each[index] for each in states])
    return first


def _below_each_other(parts: list[Tensor]) -> Tensor:
    length = max(part.shape[-2] for part in parts)
    whole = parts[0].new_zeros(sum(map(len, parts)), parts[0].shape[1], length, parts[0].shape[-1])
    row = 0
    for part in parts:
        whole[row : row + len(part), :, length - part.shape[-2] :] = part
        row += len(part)
    return whole


def _with_room(part: Tensor, length: int) -> Tensor:
    roomy = part.new_zeros(*part.shape[:2], length, part.shape[-1])
    roomy[:, :, : part.shape[-2]] = part
    return roomy


def preallocated_cache(model: nn.Module, longest: int) -> DynamicCache:
    """An empty cache for rows of up to ``longest`` tokens.

    Layers of other kinds (sliding windows, recurrent states) stay transformers' own.
    """
    cache = DynamicCache(config=cast(Any, model.config))
    cache.layers = [PreallocatedKVLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: Cache, order: Tensor) -> None:
    """Keep the rows ``order`` of a cache, in that order."""
    place = torch.arange(len(order), device=order.device)
    moved = (order != place).nonzero().squeeze(1)
    source = order[moved]
    for layer in cache.layers:
        if isinstance(layer, PreallocatedKVLayer):
            layer.move(source, moved, len(order))
        else:
            cast(Any, layer).reorder_cache(order)


def repeat_rows(cache: Cache, rows: int, repeats: int) -> None:
    """``repeats`` copies of each of the rows, next to each other."""
    if repeats == 1:
        return
    for layer in cache.layers:
        if isinstance(layer, PreallocatedKVLayer):
            layer.batch_repeat_interleave(repeats)
        else:  # meant for beam search, but the one way to pick rows that layers of every kind have
            cast(Any, layer).reorder_cache(torch.arange(rows).repeat_interleave(repeats))


def fill_gaps(ended: Tensor) -> Tensor:
    """The rows that go on, in an order that moves few: the last ones take the places of those that ended [B]."""
    going = (~ended).nonzero().squeeze(1)
    rows = len(going)
    order = torch.arange(rows, device=ended.device)
    order[ended[:rows]] = going[going >= rows]
    return order
