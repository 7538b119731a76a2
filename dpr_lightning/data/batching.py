"""Batches of like length: which examples form which batch, a pure function of (lengths, options, seed, epoch)."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpr_lightning.errors import InputError, counted

MIXED = 2
"""Batches of a window, at least, so that an example shares its batch with different ones in the next epoch."""


class PlannedBatch(NamedTuple):
    """A micro-batch of one rank.

    ``indices`` [B] of its examples in the data set; ``num_tokens``: acted tokens of its optimizer step; ``blank``: its
    examples are in another batch too and must not count here, which happens only in evaluation on several ranks.
    """

    indices: NDArray[np.int64]
    num_tokens: float
    blank: bool = False


class TokenBudgetBatchSampler:
    """Micro-batches of like length with at most ``token_budget`` tokens each, padding included.

    Examples are sorted by length and cut into windows; within a window, examples go to batches at random, and the
    batches of all windows come in random order. The number of batches is the same in every epoch, so schedules and
    progress bars can rely on it. Every example comes once an epoch.

    The batches of one optimizer step are ``accumulate`` × ``world_size`` of these; ranks get batches of like length at
    the same time. Where the number of batches is not a multiple, the largest are split until it is. When even batches
    of one example are no multiple, training ends with a step of fewer micro-batches and leaves out up to
    ``world_size − 1`` examples, different ones in every epoch; evaluation leaves out nothing, and ranks without an
    example get a blank batch.

    Args:
        lengths: [N] tokens of each example, prompt included.
        acted_tokens: [N] tokens to learn of each example.
        token_budget: tokens a batch, padding included; a longer example is a batch by itself.
        batch_size: examples a batch, instead of a budget.
        seed: of the order.
        rank: this process.
        world_size: number of processes.
        accumulate: micro-batches a rank and optimizer step.
        shuffle: False for evaluation: longest first, always the same.
        length_ratio: about the longest over the shortest example of a window; 1.1 leaves 5% of padding, infinity
            batches examples of any length together.

    Raises:
        InputError: neither or both of ``token_budget`` and ``batch_size``, or fewer examples than ranks.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        acted_tokens: NDArray[np.int64],
        *,
        token_budget: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        shuffle: bool = True,
        length_ratio: float = 1.1,
    ) -> None:
        if (token_budget is None) == (batch_size is None):
            raise InputError(
                "Batches need exactly one of `token_budget` (tokens, padding included) and `batch_size` (examples); "
                f"found {token_budget} and {batch_size}."
            )
        for name, value in (("token_budget", token_budget), ("batch_size", batch_size), ("accumulate", accumulate)):
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be at least 1; found {value}.")
        if length_ratio < 1:
            raise InputError(f"`length_ratio` must be at least 1; found {length_ratio}.")
        self.lengths, self.acted_tokens = lengths, acted_tokens
        self.seed, self.rank, self.world_size, self.accumulate = seed, rank, world_size, accumulate
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0
        self._order = np.argsort(-lengths, kind="stable").astype(np.int64)
        sizes, self._window = _windows(lengths[self._order], token_budget, batch_size, length_ratio)
        self._sizes = self._fit_to_ranks(sizes)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        if self.shuffle:
            return len(self._sizes) // self.world_size
        return math.ceil(len(self._sizes) / self.world_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self) / self.accumulate)

    @property
    def padding_share(self) -> float:
        """Share of padding among the tokens of an epoch."""
        batches = [batch.indices for batch in self._all_batches(0) if not batch.blank]
        padded = sum(len(indices) * int(self.lengths[indices].max()) for indices in batches)
        return 1.0 - sum(int(self.lengths[indices].sum()) for indices in batches) / padded

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch."""
        self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[PlannedBatch]:
        """This rank's batches from the current position to the end of the epoch."""
        batches = self._all_batches(self.epoch)[self.rank :: self.world_size]
        while self.position < len(batches):
            self.position += 1
            yield batches[self.position - 1]

    def plans_as(self, other: "TokenBudgetBatchSampler") -> bool:
        """Whether another sampler plans the same batches in the same order, whatever the positions in it."""
        position = ("epoch", "position")
        state, rest = self.state_dict(), other.state_dict()
        return self.rank == other.rank and all(state[name] == rest[name] for name in state if name not in position)

    def state_dict(self) -> dict[str, Any]:
        """The position, with the options and sizes on which its meaning depends."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batches": len(self),
            "examples": len(self.lengths),
            "seed": self.seed,
            "world_size": self.world_size,
            "accumulate": self.accumulate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were already used; called when a run resumes.

        Raises:
            InputError: in the middle of an epoch whose batches came in another order.
        """
        current = self.state_dict()
        different = [name for name in current if name not in ("epoch", "position") and current[name] != state[name]]
        if different and 0 < state["position"] < state["batches"]:
            listed = ", ".join(f"{name} {state[name]} then, {current[name]} now" for name in different)
            raise InputError(
                f"The run stopped in the middle of epoch {state['epoch']} and cannot go on there with other data or "
                f"options: {listed}. Set them as they were, or start a new run from the checkpoint's weights."
            )
        self.epoch = int(state["epoch"])
        self.position = len(self) if state["position"] >= state["batches"] else int(state["position"])

    def _fit_to_ranks(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Split the largest batches until their number is a multiple of ranks × accumulation, or else of ranks."""
        if self.shuffle and len(self.lengths) < self.world_size:
            raise InputError(
                f"{counted(len(self.lengths), 'example')} cannot be shared among {self.world_size} processes. Use "
                f"fewer devices."
            )
        for unit in (self.world_size * self.accumulate, self.world_size):
            target = -(-len(sizes) // unit) * unit
            if target <= len(self.lengths):
                return _split_largest(sizes, target)
        return _split_largest(sizes, len(self.lengths))

    def _all_batches(self, epoch: int) -> list[PlannedBatch]:
        """The batches of all ranks in one list, in which the rank changes fastest."""
        order, bounds = self._order, np.concatenate([[0], np.cumsum(self._sizes)])
        starts, ends = bounds[:-1], bounds[1:]
        if self.shuffle:
            random = np.random.default_rng([self.seed, epoch])
            order = order[np.lexsort((random.random(len(order)), self._window))]
            spare = len(starts) % self.world_size
            if spare:
                retained = np.sort(random.permutation(len(starts))[spare:])
                starts, ends = starts[retained], ends[retained]
            rounds = random.permutation(len(starts) // self.world_size)
            slots = (rounds[:, None] * self.world_size + np.arange(self.world_size)).ravel()
            starts, ends = starts[slots], ends[slots]
        total = np.concatenate([[0], np.cumsum(self.acted_tokens[order])])
        acted = total[ends] - total[starts]
        together = self.world_size * self.accumulate
        step_tokens = np.add.reduceat(acted, np.arange(0, len(acted), together)) if len(acted) else acted
        batches = [
            PlannedBatch(order[start:end], float(step_tokens[slot // together]))
            for slot, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
        ]
        missing = -len(batches) % self.world_size
        blanks = [PlannedBatch(order[-1:], batches[-1].num_tokens, blank=True)] * missing if missing else []
        return batches + blanks


def _windows(
    lengths: NDArray[np.int64], token_budget: int | None, batch_size: int | None, length_ratio: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Batch sizes, and the window of each example, for lengths in descending order.

    A window takes the longest remaining examples; its batches have the size that the longest of them allows. It ends
    where examples are shorter than that by ``length_ratio``, but not before two batches and always on a whole one: only
    the last batch of all is partial.
    """
    total = len(lengths)
    sizes: list[NDArray[np.int64]] = []
    window = np.empty(total, dtype=np.int64)
    start = number = 0
    while start < total:
        longest = int(lengths[start])
        rows_per_batch = batch_size if token_budget is None else max(1, token_budget // longest)
        assert rows_per_batch is not None
        if math.isinf(length_ratio):
            end = total
        else:
            end = int(np.searchsorted(-lengths, -longest / length_ratio, side="right"))
        batches = max(MIXED, -(-(end - start) // rows_per_batch))
        end = start + batches * rows_per_batch
        if total - end < MIXED * rows_per_batch:
            end = total
        full, rest = divmod(end - start, rows_per_batch)
        sizes.append(np.full(full, rows_per_batch, dtype=np.int64))
        if rest:
            sizes.append(np.array([rest], dtype=np.int64))
        window[start:end] = number
        start, number = end, number + 1
    return np.concatenate(sizes) if sizes else np.empty(0, dtype=np.int64), window


def _split_largest(sizes: NDArray[np.int64], target: int) -> NDArray[np.int64]:
    """Halve the largest batches until there are ``target``; both halves stay at their batch's position."""
    while len(sizes) < target:
        candidates = np.argsort(-sizes, kind="stable")[: target - len(sizes)]
        largest = candidates[sizes[candidates] > max(1, int(sizes.max()) // 2)]
        halved = np.zeros(len(sizes), dtype=np.int64)
        halved[largest] = 1
        first = np.cumsum(1 + halved) - (1 + halved)
        split = np.repeat(sizes, 1 + halved)
        split[first[largest]] = (sizes[largest] + 1) // 2
        split[first[largest] + 1] = sizes[largest] // 2
        sizes = split
    return sizes
