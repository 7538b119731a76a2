"""Mistakes in the demonstrations of a toy, and where they are: what a method that looks for mistakes is judged by."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import ANSWER_MARKER

Row = dict[str, Any]
NoiseKind = Literal["step", "answer", "swap"]
"""``step``: a character of a step is wrong, and so is the answer after it; ``answer``: one of the answer alone;
``swap``: rows have each other's completions."""
DIGITS, LETTERS = "123456789", "abcdefghijklmnopqrstuvwxyz"


class NoisyRows(NamedTuple):
    """``rows`` with mistakes; ``wrong``: indices of those that have one, ascending.

    ``masked``: the same rows with their mistakes as ``loss_spans`` of weight 0, which only the one who made them knows.
    """

    rows: list[Row]
    masked: list[Row]
    wrong: list[int]


def add_noise(rows: Sequence[Row], share: float, kind: NoiseKind, seed: int) -> NoisyRows:
    """Put a mistake into a share of the rows.

    Args:
        rows: with ``completion``s that end in ``Answer: X``, from :mod:`dpr_lightning.evaluation.tasks`.
        share: of the rows, at most 1.
        kind: of mistake.
        seed: of which rows and which characters.

    Raises:
        InputError: a share or kind that there is not, or a completion without such an answer.
    """
    if not 0 <= share <= 1 or kind not in get_args(NoiseKind):
        raise InputError(
            f"`noise` is {share} of kind {kind!r}: it is a share of the rows, and kinds are "
            f"{', '.join(get_args(NoiseKind))}."
        )
    generator = random.Random(seed)
    wrong = sorted(generator.sample(range(len(rows)), round(share * len(rows))))
    noisy = [dict(row) for row in rows]
    for position, index in enumerate(wrong):
        if kind == "swap":
            completion = rows[wrong[(position + 1) % len(wrong)]]["completion"]
        else:
            completion = _KINDS[kind](rows[index]["completion"], generator)
        noisy[index]["completion"] = completion
    masked = [dict(row) for row in noisy]
    for index in wrong:
        masked[index]["loss_spans"] = _differences(rows[index]["completion"], noisy[index]["completion"])
    return NoisyRows(noisy, masked, wrong)


def _wrong_step(completion: str, generator: random.Random) -> str:
    """A character of a result is wrong, and one of the answer, where the steps state it and where it is marked."""
    steps, answer = _split(completion)
    wrong = other_character(answer, generator.randrange(len(answer)), generator)
    results = [index for index in range(1, len(steps)) if steps[index].isdigit() and steps[index - 1] == "="]
    if results:
        steps = other_character(steps, generator.choice(results), generator)
    for stated, instead in ((answer, wrong), (" ".join(answer), " ".join(wrong))):
        if steps.endswith(stated):
            steps = steps.removesuffix(stated) + instead
            break
    return f"{steps}\n{ANSWER_MARKER} {wrong}"


def _wrong_answer(completion: str, generator: random.Random) -> str:
    """A character of the marked answer is wrong, and the steps are right."""
    steps, answer = _split(completion)
    return f"{steps}\n{ANSWER_MARKER} {other_character(answer, generator.randrange(len(answer)), generator)}"


_KINDS: dict[str, Callable[[str, random.Random], str]] = {"step": _wrong_step, "answer": _wrong_answer}


def _split(completion: str) -> tuple[str, str]:
    steps, marker, answer = completion.rpartition(f"\n{ANSWER_MARKER} ")
    if not marker or not answer:
        raise InputError(f"Noise needs completions of steps and a last line `{ANSWER_MARKER} X`; found {completion!r}.")
    return steps, answer


def other_character(text: str, index: int, generator: random.Random) -> str:
    """A text with another digit, or another letter, at an index."""
    different = [each for each in (DIGITS if text[index].isdigit() else LETTERS) if each != text[index]]
    return text[:index] + generator.choice(different) + text[index + 1 :]


def _differences(right: str, wrong: str) -> list[dict[str, Any]]:
    """The characters in which two completions differ, as ``loss_spans``; all of them where their lengths do."""
    if len(right) != len(wrong):
        return [{"start": 0, "end": len(wrong), "weight": 0.0}]
    return [
        {"start": index, "end": index + 1, "weight": 0.0, "text": wrong[index]}
        for index in range(len(wrong))
        if right[index] != wrong[index]
    ]
