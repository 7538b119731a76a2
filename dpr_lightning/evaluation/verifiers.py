"""Verifiers: programs that separate right answers from wrong ones. They score policies; they are not the reward.

A verifier takes the text of a prompt, the text of a completion and the metadata of the prompt, and returns a score in
[0, 1], 1 for right.
"""

import difflib
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dpr_lightning.data.ground_truth import Verifier, missing_field, needs
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.instructions import instructions
from dpr_lightning.evaluation.verifier_fields import ANSWER_MARKER, final_text, last_number, number, text

__all__ = [
    "ANSWER_MARKER",
    "VERIFIERS",
    "answer",
    "exact_match",
    "last_number",
    "load_verifier",
    "numeric",
    "verifier_named",
]

WITHOUT_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Tasks of reasoning-gym whose rows have no answer: the scorer uses other columns."""


@needs({"completion|answer": text})
def exact_match(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1 when the completion equals ``metadata["completion"]`` (or, without it, ``["answer"]``), outer space aside."""
    demonstrated = metadata.get("completion")
    return float(completion.strip() == (metadata["answer"] if demonstrated is None else demonstrated))


@needs({"answer": final_text}, marker=ANSWER_MARKER)
def answer(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1 when the text after the last ``Answer:`` equals ``metadata["answer"]``, outer space aside."""
    result = answer_text(completion)
    return float(result is not None and result == metadata["answer"])


@needs({"answer|completion": number})
def numeric(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1 when the last number of the completion equals that of ``metadata["answer"]``, or without it ``["completion"]``.

    After ``####`` (GSM8K) or ``Answer:`` only what follows the last marker counts. ``1,234.0``, ``$1234`` and ``1234``
    are equal.
    """
    result, truth = last_number(completion), metadata.get("answer")
    expected = metadata["completion"] if truth is None else truth
    return float(result is not None and math.isclose(result, expected, rel_tol=1e-9, abs_tol=1e-9))


def _check_reasoning_gym(metadata: Mapping[str, Any]) -> None:
    task = str(metadata["source_dataset"])
    if metadata.get("answer") is None and ("answer" not in metadata or task not in WITHOUT_ANSWER):
        raise InputError(missing_field("answer", metadata, "reasoning_gym"))
    if metadata.get("answer") is not None:
        try:
            text(metadata["answer"])
        except ValueError as error:
            raise InputError(f"`answer` is {metadata['answer']!r}: {error}") from error
    _scorer(task)


@needs({"source_dataset": text}, marker=ANSWER_MARKER, check=_check_reasoning_gym)
def reasoning_gym(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1 when the task's scorer returns 1 for the text after the last ``Answer:``.

    The scorers give partial credit to answers that are merely well formed; anything below 1 counts as wrong.

    Args:
        prompt: not used.
        completion: text of the answer.
        metadata: of a row of :func:`dpr_lightning.evaluation.tasks.make_task`.
    """
    result = answer_text(completion)
    if result is None:
        return 0.0
    expected = metadata["answer"]
    entry = {
        "question": metadata.get("question", prompt),
        "answer": None if expected is None else text(expected),
        "metadata": dict(metadata),
    }
    return float(_scorer(metadata["source_dataset"])(result, entry) == 1.0)


VERIFIERS: dict[str, Verifier] = {
    "exact_match": exact_match,
    "answer": answer,
    "numeric": numeric,
    "reasoning_gym": reasoning_gym,
    "instructions": instructions,
}


def verifier_named(name: str | None) -> Verifier | None:
    """The verifier of that name or ``module:function``; None for None."""
    return load_verifier(name) if name is not None else None


def load_verifier(name: str) -> Verifier:
    """A verifier by its name, or by ``module:function``.

    Raises:
        InputError: the name is unknown, the module does not import, or the function cannot be called.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise InputError(f"{unknown_name('verifier', name, VERIFIERS)} A function of yours is named `module:function`.")
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"The verifier {name!r} needs the module {module_name!r}, which does not import: {error}. Install it, or "
            "put its folder on PYTHONPATH."
        ) from error
    except Exception as error:  # a module of the user's may raise anything
        raise InputError(
            f"The verifier {name!r} is in the module {module_name!r}, which ends with {type(error).__name__} where it "
            f"is imported: {error}."
        ) from error
    functions: dict[str, Verifier] = dict(inspect.getmembers(module, callable))
    if function_name not in functions:
        public = [key for key in functions if not key.startswith("_")]
        raise InputError(unknown_name(f"function of the module {module_name}", function_name, public))
    return functions[function_name]


def answer_text(completion: str) -> str | None:
    """The text after the last ``Answer:``, outer space aside; None without the marker."""
    _, marker, rest = completion.rpartition(ANSWER_MARKER)
    return rest.strip() if marker else None


def import_reasoning_gym() -> Any:
    """The module ``reasoning_gym``, imported when first needed: it is an optional dependency and slow to load.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise InputError(
            "reasoning-gym is not installed; the procedural tasks and the `reasoning_gym` verifier need it. "
            "Install the extra: pip install 'dpr-lightning[demo]'."
        ) from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A message about an unknown name, with the nearest known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(repr(candidate) for candidate in near)}?" if near else ""
    return f"There is no {kind} {name!r}.{meant} Known: {', '.join(sorted(known)) or 'none'}."


@functools.cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """``score_answer`` of a task of reasoning-gym; cached, since loading some tasks reads a word list."""
    gym = import_reasoning_gym()
    if task not in gym.factory.DATASETS:
        raise InputError(unknown_name("reasoning-gym task", task, gym.factory.DATASETS))
    scorer: Callable[[str, dict[str, Any]], float] = gym.create_dataset(task, size=1, seed=0).score_answer
    return scorer
