"""Keys and values of answers being decoded, in tensors that are preallocated for more tokens."""

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

_SPARE = 32
"""Tokens by which a full layer grows: its content is copied once for so many steps."""
_JOINED = (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, DummyLayer)
"""Layer classes of transformers that can be joined: their states have no length, their keys no window."""


class PreallocatedKVLayer(DynamicLayer):
    """Keys and values of one layer, in the first columns of preallocated tensors.

    The layer of transformers concatenates at every token, which copies everything. Here a token is written in place,
    and a row that ends is replaced by the last one.

    Args:
        longest: tokens of a row at most.

    Attributes:
        length: tokens of a row so far.
    """

    def __init__(self, longest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._longest = longest
        self._storage: tuple[Tensor, Tensor]
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, new, width]; returns all of them, as views."""
        rows, start, end = len(key_states), self.length, self.length + key_states.shape[-2]
        if not self.is_initialized:
            # The prefill is stored without a copy: it is copied for each sample anyway.
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._storage = (key_states, value_states)
            return self._set_length(rows, end)
        keys, values = self.lengthen(rows, end - start)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return self._set_length(rows, end)

    def lengthen(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Add ``tokens`` columns to the first rows, for the caller to write.

        Returns:
            keys and values [rows, heads, capacity, width], all preallocated columns.
        """
        end = self.length + tokens
        if end > self._storage[0].shape[-2]:
            capacity = max(end, min(end + _SPARE, self._longest))
            keys, values = (storage[:rows, :, : self.length] for storage in self._storage)
            self._storage = _extended(keys, capacity), _extended(values, capacity)
        self._set_length(rows, end)
        return self.preallocated(rows)

    def preallocated(self, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, capacity, width] of the first rows: all columns, zeros beyond the length."""
        keys, values = self._storage
        return keys[:rows], values[:rows]

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Copy the rows ``source`` to the indices ``target``, and drop all but the first ``rows``."""
        if not self.is_initialized:
            return
        for storage in self._storage:
            storage[target] = storage[source]
        self._set_length(rows, self.length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Replace every row by ``repeats`` adjacent copies."""
        keys, values = self._storage
        self._storage = (keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0))
        self._set_length(len(self._storage[0]), self.length)

    def _set_length(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Set the length; ``keys`` and ``values``, which transformers reads, become views without spare columns."""
        keys, values = self._storage
        self.keys, self.values, self.length = keys[:rows, :, :length], values[:rows, :, :length], length
        return self.keys, self.values


def is_recurrent(layer: Any) -> bool:
    """Whether a layer of a cache has a recurrent state, which padding would change."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def can_join(layer: Any) -> bool:
    """Whether :func:`join_layers` joins layers of this class."""
    return isinstance(layer, PreallocatedKVLayer) or type(layer) in _JOINED


def join_layers(parts: Sequence[Any]) -> Any:
    """One layer with the rows of all parts; shorter rows are padded with zeros on the left."""
    first = parts[0]
    if isinstance(first, PreallocatedKVLayer):
        result = PreallocatedKVLayer(first._longest)
        result.update(*_keys_and_values(parts))
        return result
    if isinstance(first, DynamicLayer) and first.is_initialized:
        first.keys, first.values = _keys_and_values(parts)
    if isinstance(first, LinearAttentionLayer):
        for states in ([part.conv_states for part in parts], [part.recurrent_states for part in parts]):
            for index, state in states[0].items():
                if state is not None:
                    states[0][index] = torch.cat([each[index] for each in states])
    return first


def _keys_and_values(parts: Sequence[Any]) -> tuple[Tensor, Tensor]:
    return _below_each_other([part.keys for part in parts]), _below_each_other([part.values for part in parts])


def _below_each_other(parts: list[Tensor]) -> Tensor:
    length = max(part.shape[-2] for part in parts)
    whole = parts[0].new_zeros(sum(map(len, parts)), parts[0].shape[1], length, parts[0].shape[-1])
    row = 0
    for part in parts:
        whole[row : row + len(part), :, length - part.shape[-2] :] = part
        row += len(part)
    return whole


def _extended(part: Tensor, length: int) -> Tensor:
    result = part.new_zeros(*part.shape[:2], length, part.shape[-1])
    result[:, :, : part.shape[-2]] = part
    return result


def preallocated_cache(model: nn.Module, longest: int) -> DynamicCache:
    """An empty cache for rows of up to ``longest`` tokens.

    Layers of other kinds (sliding windows, recurrent states) are those of transformers.
    """
    cache = DynamicCache(config=cast(Any, model.config))
    cache.layers = [PreallocatedKVLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: Cache, order: Tensor) -> None:
    """Keep the rows ``order`` of a cache, in that order."""
    index = torch.arange(len(order), device=order.device)
    moved = (order != index).nonzero().squeeze(1)
    source = order[moved]
    for layer in cache.layers:
        if isinstance(layer, PreallocatedKVLayer):
            layer.move(source, moved, len(order))
        else:
            cast(Any, layer).reorder_cache(order)


def repeat_rows(cache: Cache, rows: int, repeats: int) -> None:
    """Replace each of the ``rows`` rows by ``repeats`` adjacent copies."""
    if repeats == 1:
        return
    for layer in cache.layers:
        if isinstance(layer, PreallocatedKVLayer):
            layer.batch_repeat_interleave(repeats)
        else:  # meant for beam search, but the only way to select rows that all layer classes have
            cast(Any, layer).reorder_cache(torch.arange(rows).repeat_interleave(repeats))


def fill_gaps(ended: Tensor) -> Tensor:
    """Indices of the rows that have not ended [B], in an order that moves few: the last replace those that ended."""
    going = (~ended).nonzero().squeeze(1)
    rows = len(going)
    order = torch.arange(rows, device=ended.device)
    order[ended[:rows]] = going[going >= rows]
    return order
