"""Which two of a prompt's responses form a pair, and which of them is labelled as chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import expit

from dpr_lightning.errors import InputError

Pick = Literal["best_worst", "random", "bradley_terry"]


@dataclass
class PairsSpec:
    """How pairs are made of a policy's responses.

    Args:
        judge: what scores them: ``verifier:NAME``, ``dense`` (the token rewards of π_SFT against its references,
            summed), ``head:FOLDER`` (a verifier head), or ``policy:FOLDER`` (its log-ratio to π_SFT, a local reward
            model).
        pick: ``best_worst`` of the responses; two at ``random``, of which the better one is chosen;
            ``bradley_terry``: two at random, of which the first is chosen with probability
            σ((R₁ − R₂)/label_temperature).
        samples: responses a prompt.
        label_temperature: units of the judge's score; towards 0 labels are always right.
        temperature: of the responses.
        limit: use the first so many prompts.
    """

    judge: str = "verifier:answer"
    pick: Pick = "best_worst"
    samples: int = 4
    label_temperature: float = 1.0
    temperature: float = 1.0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and the form of the judge's name."""
        if self.pick not in get_args(Pick):
            raise InputError(f"`pick` is {self.pick!r}: choose {', '.join(get_args(Pick))}.")
        if self.samples < 2:
            raise InputError(f"`samples` is {self.samples}: a pair is of two responses at least.")
        if not self.label_temperature > 0:
            raise InputError(f"`label_temperature` is {self.label_temperature:g}: it divides scores, and is above 0.")
        if not self.temperature > 0:
            raise InputError(f"`temperature` is {self.temperature:g}: all responses would be the same one. Take 1.")
        kind, _, name = self.judge.partition(":")
        if not (self.judge == "dense" or (kind in ("verifier", "head", "policy") and name)):
            raise InputError(f"`judge` is {self.judge!r}: write verifier:NAME, dense, head:FOLDER or policy:FOLDER.")


def pick_pair(
    scores: Sequence[float], pick: Pick, label_temperature: float, random: np.random.Generator
) -> tuple[int, int] | None:
    """Indices of the chosen and the rejected one of some responses; None where their scores prefer neither.

    Args:
        scores: two or more.
        pick: see :class:`PairsSpec`.
        label_temperature: of ``bradley_terry``.
        random: draws two responses, and the label.
    """
    if pick == "best_worst":
        first, second = int(np.argmax(scores)), int(np.argmin(scores))
    else:
        first, second = (int(each) for each in random.choice(len(scores), 2, replace=False))
    gap = scores[first] - scores[second]
    if pick == "bradley_terry":
        prefers_first = random.random() < float(expit(gap / label_temperature))
        return (first, second) if prefers_first else (second, first)
    if gap == 0:
        return None
    return (first, second) if gap > 0 else (second, first)
