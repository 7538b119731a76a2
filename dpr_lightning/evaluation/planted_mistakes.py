"""Mistakes that are put into a few answers of any kind, to measure how well a list of suspicious rows names them."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.noise import other_character

MistakeKind = Literal["number", "left_out", "swap"]
"""``number``: a digit is another one; ``left_out``: a line is missing; ``swap``: the answer is that of another row."""
KINDS: tuple[MistakeKind, ...] = ("number", "left_out", "swap")
WORDS: dict[MistakeKind, tuple[str, str]] = {
    "number": ("changed number", "changed numbers"),
    "left_out": ("line left out", "lines left out"),
    "swap": ("answer of another row", "answers of other rows"),
}
MOST, ATTEMPTS = 0.5, 20
"""The largest share of rows with a mistake; how many rows are sampled for one with another answer."""


@dataclass(frozen=True, order=True)
class PlantedMistake:
    """``text``: the answer of row ``index`` with a mistake of a ``kind``."""

    index: int
    kind: MistakeKind
    text: str


def plant_mistakes(
    answers: Sequence[str], share: float, seed: int, is_possible: Callable[[int, str], bool] = lambda index, text: True
) -> list[PlantedMistake]:
    """Put a mistake into a share of the answers, at least one; the kinds take turns where an answer allows them.

    Args:
        answers: of all rows.
        share: of the rows, up to a half.
        seed: of which rows and which mistakes.
        is_possible: whether the answer of a row, by its index, can be replaced by a text.

    Raises:
        InputError: a share outside (0, 0.5], or no answer in which a mistake can be.
    """
    if not 0 < share <= MOST:
        raise InputError(
            f"`plant` is {share:g}. It is a share of the rows, above 0 and {MOST:g} at most, such as 0.02."
        )
    generator, count = random.Random(seed), max(1, round(share * len(answers)))
    planted: list[PlantedMistake] = []
    for index in generator.sample(range(len(answers)), len(answers)):
        first = len(planted) % len(KINDS)
        for kind in KINDS[first:] + KINDS[:first]:
            text = _mistaken(answers, index, kind, generator)
            if text is not None and text.strip() and text != answers[index] and is_possible(index, text):
                planted.append(PlantedMistake(index, kind, text))
                break
        if len(planted) == count:
            return sorted(planted)
    if not planted:
        raise InputError(
            "`plant` cannot put a mistake into any answer: none has a digit or a second line, and all are equal. Leave "
            "`plant` out."
        )
    return sorted(planted)


def describe_kinds(kinds: Sequence[MistakeKind], listed: Sequence[MistakeKind]) -> str:
    """``2 of 3 changed numbers, 1 of 1 line left out``.

    Args:
        kinds: of all planted mistakes.
        listed: of those at the top of a list.
    """
    counts, above = Counter(kinds), Counter(listed)
    return ", ".join(
        f"{above[kind]} of {counts[kind]} {WORDS[kind][counts[kind] > 1]}" for kind in KINDS if counts[kind]
    )


def _mistaken(answers: Sequence[str], index: int, kind: MistakeKind, generator: random.Random) -> str | None:
    """An answer with a mistake; None where it cannot have one of this kind."""
    answer = answers[index]
    if kind == "swap":
        sampled = (answers[generator.randrange(len(answers))] for _ in range(ATTEMPTS))
        return next((other for other in sampled if other != answer), None)
    if kind == "number":
        digits = [position for position, character in enumerate(answer) if character.isdecimal()]
        return other_character(answer, generator.choice(digits), generator) if digits else None
    lines = answer.splitlines(keepends=True)
    filled = [position for position, line in enumerate(lines) if line.strip()]
    if len(filled) < 2:
        return None
    left_out = generator.choice(filled)
    return "".join(line for position, line in enumerate(lines) if position != left_out).rstrip("\r\n")
