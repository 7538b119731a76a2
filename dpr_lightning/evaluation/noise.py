"""Mistakes in the demonstrations of a toy, and where they are: what a method that looks for mistakes is judged by."""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import ANSWER_MARKER

Row = dict[str, Any]
NoiseKind = Literal["step", "answer", "swap", "left_out", "systematic"]
"""``step``: a character of a step is wrong, and so is the answer after it; ``answer``: one of the answer alone;
``swap``: rows have each other's completions; ``left_out``: a step is missing; ``systematic``: a fact, such as the
result of ``7+8=``, is the same wrong one in every row that uses it, and the end of the answer with it."""
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
        share: of the rows, at most 1; ``systematic`` mistakes may be in more.
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
    completions = [str(row["completion"]) for row in rows]
    changed = _KINDS[kind](completions, round(share * len(rows)), random.Random(seed))
    wrong = sorted(changed)
    noisy = [dict(row) for row in rows]
    for index in wrong:
        noisy[index]["completion"] = changed[index]
    masked = [dict(row) for row in noisy]
    for index in wrong:
        masked[index]["loss_spans"] = _differences(rows[index]["completion"], noisy[index]["completion"])
    return NoisyRows(noisy, masked, wrong)


def _sampled(count: int, completions: Sequence[str], generator: random.Random) -> list[int]:
    return sorted(generator.sample(range(len(completions)), count))


def _in_each(change: Callable[[str, random.Random], str]) -> "_Kind":
    """A kind of mistake that a completion has on its own."""

    def change_some(completions: Sequence[str], count: int, generator: random.Random) -> dict[int, str]:
        indices = _sampled(count, completions, generator)
        return {index: change(completions[index], generator) for index in indices}

    return change_some


def _swapped(completions: Sequence[str], count: int, generator: random.Random) -> dict[int, str]:
    indices = _sampled(count, completions, generator)
    return {index: completions[other] for index, other in zip(indices, indices[1:] + indices[:1], strict=True)}


def _systematic(completions: Sequence[str], count: int, generator: random.Random) -> dict[int, str]:
    """Wrong facts in every row that has them, one fact after the other, until there are as many rows or more."""
    parts = [_split(completion) for completion in completions]
    facts = sorted({fact for steps, answer in parts for fact in _facts(steps, answer)})
    generator.shuffle(facts)
    changed: dict[int, str] = {}
    for fact in facts:
        if len(changed) >= count:
            break
        seed = generator.random()
        for index, (steps, answer) in enumerate(parts):
            if index not in changed and fact in _facts(steps, answer):
                changed[index] = _with_wrong_fact(steps, answer, fact, seed)
    return changed


def _facts(steps: str, answer: str) -> set[str]:
    """The left sides of a completion's equations, such as ``7+8=``; without equations, the letters of its answer."""
    return set(re.findall(r"[^:,>=\s]+=", steps)) or set(answer)


def _with_wrong_fact(steps: str, answer: str, fact: str, seed: float) -> str:
    """A completion in which a fact has another result, which depends on ``seed`` and the right result alone."""

    def wrong(text: str, index: int) -> str:
        return other_character(text, index, random.Random(f"{seed}{text[index]}"))

    if not fact.endswith("="):
        instead = wrong(fact, 0)
        first, line_end, last = steps.rpartition("\n")
        return f"{first}{line_end}{last.replace(fact, instead)}\n{ANSWER_MARKER} {answer.replace(fact, instead)}"
    result = re.search(rf"(?<![^:,>\s]){re.escape(fact)}", steps)
    assert result is not None
    return _with_answer(wrong(steps, result.end()), answer, wrong(answer, len(answer) - 1))


def _wrong_step(completion: str, generator: random.Random) -> str:
    """A character of a result is wrong, and one of the answer, where the steps state it and where it is marked."""
    steps, answer = _split(completion)
    wrong = other_character(answer, generator.randrange(len(answer)), generator)
    results = [index for index in range(1, len(steps)) if steps[index].isdigit() and steps[index - 1] == "="]
    if results:
        steps = other_character(steps, generator.choice(results), generator)
    return _with_answer(steps, answer, wrong)


def _with_answer(steps: str, answer: str, instead: str) -> str:
    """A completion with another answer, also where its steps end in it."""
    for stated, other in ((answer, instead), (" ".join(answer), " ".join(instead))):
        if steps.endswith(stated):
            steps = steps.removesuffix(stated) + other
            break
    return f"{steps}\n{ANSWER_MARKER} {instead}"


def _wrong_answer(completion: str, generator: random.Random) -> str:
    """A character of the marked answer is wrong, and the steps are right."""
    steps, answer = _split(completion)
    return f"{steps}\n{ANSWER_MARKER} {other_character(answer, generator.randrange(len(answer)), generator)}"


def _left_out(completion: str, generator: random.Random) -> str:
    """A step is missing: an equation, or a line where there are none.

    Raises:
        InputError: there is but one line, and no equation.
    """
    steps, answer = _split(completion)
    equations = list(re.finditer(r"[^:,>=\s]+=[^,>\s]*,?", steps))
    if equations:
        equation = generator.choice(equations)
        before, after = steps[: equation.start()], steps[equation.end() :]
        steps = (before if equation[0].endswith(",") else before.removesuffix(",")) + after
    elif "\n" in steps:
        lines = steps.split("\n")
        lines.pop(generator.randrange(len(lines)))
        steps = "\n".join(lines)
    else:
        raise InputError(f"`noise_kind` is left_out, and {completion!r} has no step that can be left out.")
    return f"{steps}\n{ANSWER_MARKER} {answer}"


_Kind = Callable[[Sequence[str], int, random.Random], dict[int, str]]
"""Completions, how many are to be wrong, and a generator → the wrong ones by their index."""
_KINDS: dict[NoiseKind, _Kind] = {
    "step": _in_each(_wrong_step),
    "answer": _in_each(_wrong_answer),
    "swap": _swapped,
    "left_out": _in_each(_left_out),
    "systematic": _systematic,
}


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
