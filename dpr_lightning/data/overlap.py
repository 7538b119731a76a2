"""Checks that imitation, reinforcement learning and evaluation use different prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpr_lightning.errors import InputError, counted

EXAMPLES = 3
"""Examples of an overlap that a message names."""


class HashedPrompts(Protocol):
    """A set of prompts: a :class:`PromptSet`, or the demonstrations of a :class:`TokenizedDataset`."""

    @property
    def prompt_hashes(self) -> NDArray[np.int64]:
        """[N] from :func:`~dpr_lightning.data.prompt_identity.prompt_hash`."""
        ...

    def where(self, index: int) -> str:
        """``file:number`` of a prompt."""
        ...


@dataclass
class OverlapReport:
    """Prompts that two sets share, and prompts that one set repeats.

    ``prompts``: number of different prompts of each set; ``duplicates``: rows of each set that repeat an earlier
    prompt; ``shared``: number of different prompts in both of two sets; ``examples``: ``file:number`` of the first of
    these in either set.
    """

    prompts: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    shared: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line for each set and each pair that overlaps."""
        lines = [
            f"{name}: {counted(count, 'different prompt')}, {counted(self.duplicates[name], 'repetition')}"
            for name, count in self.prompts.items()
        ]
        for (first, second), count in self.shared.items():
            if count:
                listed = "; ".join(f"{here} = {there}" for here, there in self.examples[first, second])
                more = " …" if count > EXAMPLES else ""
                lines.append(f"{first} and {second} share {counted(count, 'prompt')}: {listed}{more}")
        return "\n".join(lines)


def check_overlap(sets: Mapping[str, HashedPrompts], allow_overlap: bool = False) -> OverlapReport:
    """Compare named sets of prompts, pair by pair.

    Args:
        sets: such as ``demonstrations``, ``rl`` and ``evaluation``.
        allow_overlap: report an overlap without refusing it.

    Raises:
        InputError: two sets share a prompt and ``allow_overlap`` is False.
    """
    report = OverlapReport()
    unique: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for name, prompts in sets.items():
        hashes, first = np.unique(prompts.prompt_hashes, return_index=True)
        unique[name] = hashes, first
        report.prompts[name] = len(hashes)
        report.duplicates[name] = len(prompts.prompt_hashes) - len(hashes)
    for here, there in combinations(sets, 2):
        _, ours, theirs = np.intersect1d(unique[here][0], unique[there][0], assume_unique=True, return_indices=True)
        report.shared[here, there] = len(ours)
        # In the order of the first set's file, so that the message names rows one meets first.
        pairs = sorted(zip(unique[here][1][ours].tolist(), unique[there][1][theirs].tolist(), strict=True))
        report.examples[here, there] = [(sets[here].where(a), sets[there].where(b)) for a, b in pairs[:EXAMPLES]]
    if any(report.shared.values()) and not allow_overlap:
        raise InputError(
            "Prompts that must be different are the same, so a score would tell what was learnt by heart.\n"
            f"{report}\nRemove these rows from one of the files, or set allow_overlap: true."
        )
    return report
