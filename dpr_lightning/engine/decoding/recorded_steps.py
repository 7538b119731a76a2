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
_ROOM, _STRIDE = 128, 8
"""Tokens of room that a recording is made for, all room being a multiple of what kernels like."""
_WORTH = 8
"""Steps for which at least a recording is made."""
_ASK_THE_HOST = {"dynamic", "longrope"}
"""Rotary positions that look at how long the longest row is."""
_refused: WeakSet[nn.Module] = WeakSet()
"""Models whose steps could not be recorded, or did something else when played."""
_tried: WeakSet[nn.Module] = WeakSet()
"""Models of which a recorded step was seen to do the same as one that is not."""
_CLOSE = 0.05
"""Nats by which both may differ in half precision; most tokens are the same."""


class GraphSteps(DecodeSteps):
    """The same, for a model on a GPU, in few launches.

    A step is hundreds of small operations, and to launch each may take longer than to do it. Recorded, they are
    launched at once; but a recording serves only as long as tensors stay where they are and as large as they are. So
    rows that have ended are left out when they are a quarter of all, room is made for many tokens, and keys are
    attended to with all their room. The first step of each size is not recorded: libraries that are used for the first
    time set themselves up, which may not be in a recording.

    Args:
        batch: of one model whose insides are known, that has read its prompts.
        state: of this model.
        temperature: as in :func:`draw`.
        top_p: the same.
        limit: tokens that each row will have at most, one of them drawn.
    """

    def __init__(self, batch: DecodeBatch, state: CachedState, temperature: float, top_p: float, limit: int) -> None:
        super().__init__(batch, temperature, top_p)
        self._state = state
        self._left = limit - 1
        self._fixed: _Fixed | None = None
        self._replay: Callable[[], None] | None = None

    def next(self, chosen: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """As it is there."""
        self._left -= 1
        if self._fixed is not None and self._fixed.steps == self._fixed.room:
            self._settle()
        if self._fixed is None and self._pays():
            self._fixed = self._prepared(uniform)
        if self._fixed is not None:
            self._fixed.chosen.copy_(chosen)
            self._fixed.uniform.copy_(uniform)
            if self._fixed.steps == 1:
                self._record(self._fixed)
        if self._fixed is None:
            return super().next(chosen, uniform)
        return self._played(self._fixed)

    def leaves_out(self, ended: int, rows: int) -> bool:
        """As it is there."""
        return super().leaves_out(ended, rows) if self._fixed is None else 4 * ended >= rows

    def keep(self, order: Tensor) -> None:
        """As it is there."""
        self._settle()
        super().keep(order)

    def _pays(self) -> bool:
        """Whether to record; not before there are keys: with prompts' own elsewhere, a first token makes them."""
        has_keys = self._state.cache.layers[0].is_initialized
        return has_keys and self._state.model not in _refused and self._left >= _WORTH

    def _prepared(self, uniform: Tensor) -> "_Fixed":
        """Tensors for steps of as many rows as there are."""
        rows = len(uniform)
        layers = self._state.cache.layers
        length = layers[0].keys.shape[-2]
        room = length + min(_ROOM, self._left + 1)
        for layer in layers:
            layer.make_room(rows, -(-room // _STRIDE) * _STRIDE - length)
        keys = layers[0].room(rows)[0]
        own = None if self._state.prompt_keys is not None else self._state.attention
        bias = keys.new_full((1 if own is None else rows, keys.shape[-2]), float("-inf"))
        seen = bias[:, :length]
        seen.zero_() if own is None else seen.masked_fill_(own.bool(), 0.0)
        return _Fixed(
            chosen=torch.zeros(rows, dtype=torch.int64, device=keys.device),
            uniform=torch.empty_like(uniform),
            logprob=torch.empty(rows, dtype=torch.float32, device=keys.device),
            position=self._state.position.clone(),
            column=CacheColumn(torch.full((1,), length, device=keys.device), bias),
            room=keys.shape[-2] - length,
        )

    def _played(self, fixed: "_Fixed") -> tuple[Tensor, Tensor]:
        if self._replay is None:
            self._step(fixed)
        else:
            self._replay()
        fixed.steps += 1
        return fixed.chosen, fixed.logprob

    def _step(self, fixed: "_Fixed") -> None:
        """One token, from and into tensors that stay where they are."""
        state, column = self._state, fixed.column
        column.bias.index_fill_(1, column.place, 0.0)
        assert state.one_token is not None
        logits = state.one_token(fixed.chosen, fixed.position, None, state.cache.layers, state.prompt_keys, column)
        chosen, logprob = self._drawn(logits, fixed.uniform)
        fixed.chosen.copy_(chosen)
        fixed.logprob.copy_(logprob)
        fixed.position.add_(1)
        column.place.add_(1)

    def _record(self, fixed: "_Fixed") -> None:
        model, why = self._state.model, ""
        try:
            replay = capture(lambda: self._step(fixed), fixed.position.device)
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
        else:
            if model in _tried or self._does_the_same(replay, fixed):
                if model not in _tried:
                    log.info("Decoding steps of this model are replayed as CUDA graphs.")
                _tried.add(model)
                self._replay = replay
                return
            why = "played again, it did something else"
        log.warning(
            "A decoding step could not be captured as a CUDA graph (%s), so that its operations are launched one by "
            "one. Without %s=1 no capture is tried.",
            why,
            SWITCH,
        )
        _refused.add(model)
        self._settle()

    def _does_the_same(self, replay: Callable[[], None], fixed: "_Fixed") -> bool:
        """Take the next step in both ways, and go back."""
        before = [held.clone() for held in fixed.moving]
        found: list[list[Tensor]] = []
        ways: list[Callable[[], None]] = [partial(self._step, fixed), replay]
        for step in ways:
            step()
            found.append([held.clone() for held in fixed.moving])
            for held, then in zip(fixed.moving, before, strict=True):
                held.copy_(then)
        (tokens, logprob, *places), (again, logprob_again, *places_again) = found
        same = tokens == again  # rounding leads few rows elsewhere
        near = torch.isclose(logprob, logprob_again, atol=_CLOSE, rtol=0, equal_nan=True)
        moved = all(torch.equal(ours, theirs) for ours, theirs in zip(places, places_again, strict=True))
        return moved and bool(same.float().mean() >= 0.9) and bool(near[same].all())

    def _settle(self) -> None:
        """Let the batch know what was written in the meantime; its tensors may change then."""
        if self._fixed is not None and self._fixed.steps > 0:
            self._state.advance(self._fixed.steps)
        self._fixed = self._replay = None


class _Fixed:
    """Tensors that stay where they are from step to step.

    ``chosen`` [B]: tokens, first those to read and then those drawn; ``uniform`` [B]; ``logprob`` [B], of those drawn;
    ``position`` [B]; ``column``: where keys go; ``room``: steps that there is room for; ``steps``: that were made;
    ``moving``: what a step changes, but for keys and what is seen, which it writes in place.
    """

    def __init__(
        self, *, chosen: Tensor, uniform: Tensor, logprob: Tensor, position: Tensor, column: CacheColumn, room: int
    ) -> None:
        self.chosen, self.uniform, self.logprob = chosen, uniform, logprob
        self.position, self.column, self.room = position, column, room
        self.steps = 0
        self.moving = (chosen, logprob, position, column.place)


def steps_of(batch: DecodeBatch, temperature: float, top_p: float, limit: int) -> DecodeSteps:
    """How a batch is written: in recorded steps where they are faster and do the same."""
    state = batch.states[0]
    if isinstance(state, CachedState) and has_graphs(state.position.device) and _can_be_recorded(batch, state):
        return GraphSteps(batch, state, temperature, top_p, limit)
    return DecodeSteps(batch, temperature, top_p)


def _can_be_recorded(batch: DecodeBatch, state: CachedState) -> bool:
    if len(batch.states) > 1 or state.one_token is None or batch.combine is not single_model:
        return False
    rotary = inside_of_adapters(state.model).model.rotary_emb
    # Under autocast each step would cast all weights again: what is cast once need not be there when it is played.
    return not (autocasts() or getattr(rotary, "rope_type", None) in _ASK_THE_HOST)
