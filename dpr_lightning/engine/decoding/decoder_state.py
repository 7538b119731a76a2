"""State of rows between decoding steps: the protocol, and two implementations without this package's cache."""

from collections.abc import MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpr_lightning.engine.cache_argument import CACHE_ARGUMENTS, takes_argument
from dpr_lightning.engine.forward import logits_of_inputs

_RETURNED = (*CACHE_ARGUMENTS, "state")
"""Names under which models take and return a cache of any class."""


class DecoderState(Protocol):
    """Rows of one model while they are decoded: ``prefill`` (once or more), ``start``, then ``step`` and ``select``.

    Attributes:
        joins: whether the prompts may be split over several calls of :meth:`prefill`; False: one call has all.
        pads: whether prompts of one call may differ in length; False: they are equally long.
    """

    joins: bool
    pads: bool

    def prefill(self, tokens: Tensor, attention: Tensor | None, width: int) -> Tensor:
        """Logits [G, V] after the last token of each prompt.

        Args:
            tokens: [G, P], left-padded.
            attention: [G, P], 0 where there is padding; None: nowhere.
            width: tokens of the longest prompt of all calls.
        """
        ...

    def start(self, attention: Tensor | None, length: Tensor, num_samples: int) -> None:
        """Repeat every prompt ``num_samples`` times, the repetitions next to each other.

        Args:
            attention: [G, width] of the prompts of all calls; None: there is no padding.
            length: [G], tokens of each.
            num_samples: rows a prompt.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row [B]; logits [B, V] of the next."""
        ...

    def select(self, order: Tensor) -> None:
        """Replace the rows by those with these indices."""
        ...


class LibraryState:
    """A cache that the model creates, of any class; prompts are equally long, so that no layer sees padding.

    Args:
        model: that returns its cache under the name of the argument that takes it.
    """

    joins = False
    pads = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cache: dict[str, Any] = {}
        self._length = 0
        # Some models count positions by their first layer, which may be recurrent.
        self._takes_positions = takes_argument(model, "position_ids")

    def prefill(self, tokens: Tensor, attention: Tensor | None, width: int) -> Tensor:
        """As in :class:`DecoderState`."""
        return self._forward(tokens)

    def start(self, attention: Tensor | None, length: Tensor, num_samples: int) -> None:
        """As in :class:`DecoderState`."""
        rows = torch.arange(len(length), device=length.device)
        self._select(rows.repeat_interleave(num_samples), len(length))
        self._rows = len(length) * num_samples

    def step(self, tokens: Tensor) -> Tensor:
        """As in :class:`DecoderState`."""
        return self._forward(tokens.unsqueeze(1))

    def select(self, order: Tensor) -> None:
        """As in :class:`DecoderState`."""
        self._select(order, self._rows)
        self._rows = len(order)

    def _forward(self, tokens: Tensor) -> Tensor:
        inputs = dict(self._cache)
        if self._takes_positions:
            position = torch.arange(self._length, self._length + tokens.shape[1], device=tokens.device)
            inputs["position_ids"] = position.expand_as(tokens)
        self._length += tokens.shape[1]
        output = self._model(input_ids=tokens, use_cache=True, **inputs)
        self._cache = {name: value for name, value in output.items() if name in _RETURNED and value is not None}
        if not self._cache:
            raise ValueError("its forward pass returns no cache")
        logits: Tensor = output.logits[:, -1]
        return logits

    def _select(self, order: Tensor, rows: int) -> None:
        self._cache = {name: select_rows(value, order, rows) for name, value in self._cache.items()}


class RecomputedState:
    """No cache: every token reads its whole row again, right-padded as rows are when they are scored.

    Args:
        model: any causal model.
    """

    joins = True
    pads = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._prompts: list[Tensor] = []

    def prefill(self, tokens: Tensor, attention: Tensor | None, width: int) -> Tensor:
        """As in :class:`DecoderState`."""
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        length = torch.full_like(tokens[:, 0], tokens.shape[1]) if attention is None else attention.sum(1)
        before = (tokens.shape[1] - length).unsqueeze(1)
        rows = tokens.gather(1, (columns + before) % tokens.shape[1])  # padding goes to the right
        self._prompts.append(torch.nn.functional.pad(rows, (0, width - rows.shape[1])))
        return self._forward(rows, length)

    def start(self, attention: Tensor | None, length: Tensor, num_samples: int) -> None:
        """As in :class:`DecoderState`."""
        self._rows = torch.cat(self._prompts).repeat_interleave(num_samples, 0)
        self._length = length.repeat_interleave(num_samples, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """As in :class:`DecoderState`."""
        self._rows = torch.nn.functional.pad(self._rows, (0, 1))
        self._rows.scatter_(1, self._length.unsqueeze(1), tokens.unsqueeze(1))
        self._length = self._length + 1
        return self._forward(self._rows, self._length)

    def select(self, order: Tensor) -> None:
        """As in :class:`DecoderState`."""
        self._rows, self._length = self._rows[order], self._length[order]

    def _forward(self, rows: Tensor, length: Tensor) -> Tensor:
        last = torch.arange(len(rows), device=rows.device) * rows.shape[1] + length - 1
        return logits_of_inputs(self._model, {"input_ids": rows, "use_cache": False}, last.unsqueeze(1))[:, 0]


def select_rows(value: Any, order: Tensor, rows: int) -> Any:
    """Select the rows ``order`` of every tensor in a cache, at any nesting.

    Args:
        value: tensors, or lists, tuples, mappings and objects of them; lists, mappings and objects change in place.
        order: indices of the rows to keep.
        rows: number of rows now; tensors of fewer than two dimensions, or of another first one, are left unchanged.
    """
    if isinstance(value, Tensor):
        has_rows = value.ndim > 1 and len(value) == rows
        return value.index_select(0, order.to(value.device)) if has_rows else value
    if isinstance(value, tuple):
        return tuple(select_rows(part, order, rows) for part in value)
    if isinstance(value, list):
        value[:] = [select_rows(part, order, rows) for part in value]
    elif isinstance(value, MutableMapping):
        for key, part in list(value.items()):
            value[key] = select_rows(part, order, rows)
    elif type(value).__name__.endswith(("Cache", "Layer")):
        for name, part in list(vars(value).items()):
            setattr(value, name, select_rows(part, order, rows))
    return value
