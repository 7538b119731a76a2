"""Decoding steps of a GPU, captured once as a CUDA graph and replayed; only with ``DPR_GRAPHS=1``, and not measured."""

import logging
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dpr_lightning.engine.decoding.cached_state import CachedState
from dpr_lightning.engine.decoding.cuda_graph import SWITCH, capture, has_graphs
from dpr_lightning.engine.decoding.decode_batch import DecodeBatch, single_model
from dpr_lightning.engine.decoding.decode_step import DecodeSteps
from dpr_lightning.engine.decoding.one_token_attention import CacheColumn
from dpr_lightning.engine.half_precision import autocasts
from dpr_lightning.engine.known_decoders import inside_of_adapters

log = logging.getLogger(__name__)
_CAPACITY, _STRIDE = 128, 8
"""Tokens that keys and values are preallocated for per capture, rounded up to a multiple of the second number."""
_LEAST_STEPS = 8
"""Remaining steps below which no graph is captured."""
_HOST_DEPENDENT = {"dynamic", "longrope"}
"""Rotary embeddings that read the longest row's length on the host, which a graph cannot do."""
_refused: WeakSet[nn.Module] = WeakSet()
"""Models whose steps could not be captured, or whose replay gave other results."""
_tried: WeakSet[nn.Module] = WeakSet()
"""Models whose replayed step gave the results of an ordinary one."""
_CLOSE = 0.05
"""Nats by which log-probabilities of the two may differ in half precision; most tokens are equal."""


class GraphSteps(DecodeSteps):
    """Decoding steps of a model on a GPU, replayed as a CUDA graph.

    A step is hundreds of small operations, and launching each may take longer than running it. A graph launches them
    together, as long as no tensor changes its address or shape. Therefore ended rows are dropped only when they are a
    quarter of all, keys and values are preallocated for many tokens, and attention reads all of the preallocated
    columns. The first step of each shape is not captured, because libraries initialise themselves in it.

    Args:
        batch: of one known decoder, after prefill.
        state: of this model.
        temperature: as in :func:`sample_tokens`.
        top_p: as in :func:`sample_tokens`.
        limit: tokens of an answer at most; the first is sampled from the prefill.
    """

    def __init__(self, batch: DecodeBatch, state: CachedState, temperature: float, top_p: float, limit: int) -> None:
        super().__init__(batch, temperature, top_p)
        self._state = state
        self._left = limit - 1
        self._static: _StaticTensors | None = None
        self._replay: Callable[[], None] | None = None

    def next(self, tokens: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`DecodeSteps.next`; captures or replays a graph where that pays."""
        self._left -= 1
        if self._static is not None and self._static.steps == self._static.capacity:
            self._sync()
        if self._static is None and self._pays():
            self._static = self._prepared(uniform)
        if self._static is not None:
            self._static.tokens.copy_(tokens)
            self._static.uniform.copy_(uniform)
            if self._static.steps == 1:
                self._record(self._static)
        if self._static is None:
            return super().next(tokens, uniform)
        return self._replayed(self._static)

    def leaves_out(self, ended: int, rows: int) -> bool:
        """As :meth:`DecodeSteps.leaves_out`; with a graph, once a quarter of the rows has ended."""
        return super().leaves_out(ended, rows) if self._static is None else 4 * ended >= rows

    def keep(self, order: Tensor) -> None:
        """As :meth:`DecodeSteps.keep`; ends the use of the graph, whose shapes no longer fit."""
        self._sync()
        super().keep(order)

    def _pays(self) -> bool:
        """Whether to capture; not before there are keys, which with a shared prompt cache the first step creates."""
        has_keys = self._state.cache.layers[0].is_initialized
        return has_keys and self._state.model not in _refused and self._left >= _LEAST_STEPS

    def _prepared(self, uniform: Tensor) -> "_StaticTensors":
        """Allocate the tensors of a graph for the current rows."""
        rows = len(uniform)
        layers = self._state.cache.layers
        length = layers[0].keys.shape[-2]
        capacity = length + min(_CAPACITY, self._left + 1)
        for layer in layers:
            layer.reserve(rows, -(-capacity // _STRIDE) * _STRIDE - length)
        keys = layers[0].preallocated(rows)[0]
        attention = None if self._state.prompt_keys is not None else self._state.attention
        bias = keys.new_full((1 if attention is None else rows, keys.shape[-2]), float("-inf"))
        seen = bias[:, :length]
        seen.zero_() if attention is None else seen.masked_fill_(attention.bool(), 0.0)
        return _StaticTensors(
            tokens=torch.zeros(rows, dtype=torch.int64, device=keys.device),
            uniform=torch.empty_like(uniform),
            logprob=torch.empty(rows, dtype=torch.float32, device=keys.device),
            position=self._state.position.clone(),
            column=CacheColumn(torch.full((1,), length, device=keys.device), bias),
            capacity=keys.shape[-2] - length,
        )

    def _replayed(self, static: "_StaticTensors") -> tuple[Tensor, Tensor]:
        if self._replay is None:
            self._step(static)
        else:
            self._replay()
        static.steps += 1
        return static.tokens, static.logprob

    def _step(self, static: "_StaticTensors") -> None:
        """One token a row, read from and written to the static tensors."""
        state, column = self._state, static.column
        column.bias.index_fill_(1, column.index, 0.0)
        assert state.one_token is not None
        logits = state.one_token(static.tokens, static.position, None, state.cache.layers, state.prompt_keys, column)
        tokens, logprob = self._sample(logits, static.uniform)
        static.tokens.copy_(tokens)
        static.logprob.copy_(logprob)
        static.position.add_(1)
        column.index.add_(1)

    def _record(self, static: "_StaticTensors") -> None:
        model, why = self._state.model, ""
        try:
            replay = capture(lambda: self._step(static), static.position.device)
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
        else:
            if model in _tried or self._is_equivalent(replay, static):
                if model not in _tried:
                    log.info("Decoding steps of this model are replayed as CUDA graphs.")
                _tried.add(model)
                self._replay = replay
                return
            why = "its replay gave other results"
        log.warning(
            "A decoding step could not be captured as a CUDA graph (%s), so that its operations are launched one by "
            "one. Without %s=1 no capture is tried.",
            why,
            SWITCH,
        )
        _refused.add(model)
        self._sync()

    def _is_equivalent(self, replay: Callable[[], None], static: "_StaticTensors") -> bool:
        """Run the next step and its replay on the same state, restore the state, and compare the results."""
        before = [tensor.clone() for tensor in static.moving]
        results: list[list[Tensor]] = []
        ways: list[Callable[[], None]] = [partial(self._step, static), replay]
        for step in ways:
            step()
            results.append([tensor.clone() for tensor in static.moving])
            for tensor, then in zip(static.moving, before, strict=True):
                tensor.copy_(then)
        (tokens, logprob, *counters), (again, logprob_again, *counters_again) = results
        same = tokens == again  # rounding leads few rows elsewhere
        near = torch.isclose(logprob, logprob_again, atol=_CLOSE, rtol=0, equal_nan=True)
        moved = all(torch.equal(ours, theirs) for ours, theirs in zip(counters, counters_again, strict=True))
        return moved and bool(same.float().mean() >= 0.9) and bool(near[same].all())

    def _sync(self) -> None:
        """Advance the batch's state by the steps taken with static tensors, and drop those and the graph."""
        if self._static is not None and self._static.steps > 0:
            self._state.advance(self._static.steps)
        self._static = self._replay = None


class _StaticTensors:
    """Tensors of a graph, which keep their addresses from step to step.

    ``tokens`` [B]: input of a step and then its sampled tokens; ``uniform`` [B]; ``logprob`` [B] of sampled tokens;
    ``position`` [B]; ``column``: where keys are written; ``capacity``: steps that fit into the preallocated columns;
    ``steps``: taken so far; ``moving``: all that a step changes but keys, values and the attention bias.
    """

    def __init__(
        self, *, tokens: Tensor, uniform: Tensor, logprob: Tensor, position: Tensor, column: CacheColumn, capacity: int
    ) -> None:
        self.tokens, self.uniform, self.logprob = tokens, uniform, logprob
        self.position, self.column, self.capacity = position, column, capacity
        self.steps = 0
        self.moving = (tokens, logprob, position, column.index)


def steps_of(batch: DecodeBatch, temperature: float, top_p: float, limit: int) -> DecodeSteps:
    """The decoding steps of a batch after its prefill: CUDA graphs where they are turned on and possible."""
    state = batch.states[0]
    if isinstance(state, CachedState) and has_graphs(state.position.device) and _can_be_recorded(batch, state):
        return GraphSteps(batch, state, temperature, top_p, limit)
    return DecodeSteps(batch, temperature, top_p)


def _can_be_recorded(batch: DecodeBatch, state: CachedState) -> bool:
    if len(batch.states) > 1 or state.one_token is None or batch.combine is not single_model:
        return False
    rotary = inside_of_adapters(state.model).model.rotary_emb
    # Under autocast each step casts weights, and a cast of one step may be freed before the graph is replayed.
    return not (autocasts() or getattr(rotary, "rope_type", None) in _HOST_DEPENDENT)
