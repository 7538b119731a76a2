"""The columns that verifiers need: declared by a verifier, and checked for all prompts before any answer is sampled.

A verifier is a function of prompt text, answer text and the row's other columns. With :func:`needs` it declares the
columns that it reads and their types; a plain function declares none.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from dpr_lightning.data.messages import describe_value
from dpr_lightning.data.notices import log_lines
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.errors import InputError

Verifier = Callable[[str, str, Mapping[str, Any]], float]
FieldType = Callable[[Any], Any]
"""Reads a column's value as what the verifier compares with; raises ValueError that says what is wrong with it."""


class Requirements:
    """The columns, and the text of an answer, that a verifier needs.

    Args:
        fields: the type of each column by its name; of names joined by ``|``, the first that the row has is used.
        marker: text without which no answer scores above 0; None: there is none.
        check: called with all columns of a row, converted to their types; raises InputError.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldType],
        marker: str | None = None,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.fields = dict(fields)
        self.marker = marker
        self.check = check

    def read(self, metadata: Mapping[str, Any], verifier: str) -> dict[str, Any]:
        """The row's columns, with the declared ones converted to their types.

        Raises:
            InputError: one is missing or cannot be converted.
        """
        values = dict(metadata)
        for names, read in self.fields.items():
            present = [name for name in names.split("|") if metadata.get(name) is not None]
            if not present:
                raise InputError(missing_field(names, metadata, verifier))
            try:
                values[present[0]] = read(metadata[present[0]])
            except ValueError as error:
                raise InputError(
                    f"`{present[0]}` is {describe_value(metadata[present[0]])}: {error}, for the verifier `{verifier}`"
                ) from error
        if self.check is not None:
            self.check(values)
        return values


@runtime_checkable
class DeclaredVerifier(Protocol):
    """A verifier that declares the columns it needs."""

    requirements: Requirements

    def __call__(self, prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
        """The score in [0, 1], 1 for right."""
        ...


def needs(
    fields: Mapping[str, FieldType],
    marker: str | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[[Verifier], Verifier]:
    """Decorator: declare the columns that a verifier needs; it is then called with them converted to their types.

    Args:
        fields: such as ``{"answer": text}``; see :class:`Requirements`.
        marker: text without which no answer scores above 0.
        check: of all columns together.
    """

    def declare(function: Verifier) -> Verifier:
        name = verifier_name(function)

        @functools.wraps(function)
        def verifier(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
            return function(prompt, completion, requirements.read(metadata, name))

        requirements = Requirements(fields, marker, check)
        declared = cast(DeclaredVerifier, verifier)
        declared.requirements = requirements
        return declared

    return declare


def check_ground_truth(prompts: PromptSet, verifier: Verifier | None) -> None:
    """Check, before any answer is sampled, that every prompt has what the verifier needs.

    Raises:
        InputError: names the rows that do not, their number, and the problem of the first.
    """
    if not isinstance(verifier, DeclaredVerifier):
        return
    name = verifier_name(verifier)
    wrong: list[int] = []
    reason = ""
    for index, metadata in enumerate(prompts.metadata):
        try:
            verifier.requirements.read(metadata, name)
        except InputError as error:
            reason = reason or str(error)
            wrong.append(index)
    if wrong:
        listed = ", ".join(prompts.where(index) for index in wrong[:3]) + (", …" if len(wrong) > 3 else "")
        count = (
            f" {len(wrong):,} of {len(prompts):,} rows are like this: {listed}. Correct them, or leave them out."
            if len(wrong) > 1
            else " Correct the row, or leave it out."
        )
        raise InputError(f"{prompts.where(wrong[0])}: {reason.rstrip('.')}.{count}")


def verifier_scores(
    verifier: Verifier, prompts: PromptSet, indices: Iterable[int], completions: Sequence[str]
) -> list[float]:
    """The verifier's score of each answer.

    Args:
        verifier: (prompt text, answer text, metadata) -> score in [0, 1].
        prompts: of the answers.
        indices: index in ``prompts`` of each answer's prompt.
        completions: the answers.

    Raises:
        InputError: the verifier fails, or returns no finite number; names the row.
    """
    scores = []
    for index, completion in zip(indices, completions, strict=True):
        metadata = prompts.metadata[index]
        where, name = prompts.where(index), verifier_name(verifier)
        try:
            value: Any = verifier(prompts.texts[index], completion, metadata)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        except Exception as error:  # a function of the user's may raise anything
            missing = isinstance(error, KeyError) and error.args and error.args[0] not in metadata
            hint = f" The row has no {error.args[0]!r}; its columns are {_listed(metadata)}." if missing else ""
            raise InputError(
                f"{where}: the verifier `{name}` ended with {type(error).__name__}: {error}, for the answer "
                f"{completion[:80]!r}.{hint}"
            ) from error
        if isinstance(value, str) or not _is_finite(value):
            raise InputError(
                f"{where}: the verifier `{name}` returned {value!r} for the answer {completion[:80]!r}; it must return "
                "a number, 1 for right and 0 for wrong."
            )
        scores.append(float(value))
    if isinstance(verifier, DeclaredVerifier) and completions:
        _warn_without_marker(verifier_name(verifier), verifier.requirements.marker, prompts.file, completions)
    return scores


def verifier_name(verifier: Verifier) -> str:
    """The name of a verifier in messages."""
    named = inspect.isroutine(verifier) or inspect.isclass(verifier)
    return str(verifier.__name__ if named else type(verifier).__name__)


def missing_field(names: str, metadata: Mapping[str, Any], verifier: str) -> str:
    """The error message for a row that has none of the columns ``names``, or only null ones."""
    present = [name for name in names.split("|") if name in metadata]
    if present:
        return f"`{present[0]}` is null, and the verifier `{verifier}` compares with it"
    needed = " or ".join(map(repr, names.split("|")))
    return (
        f"The verifier `{verifier}` needs the field {needed} with every prompt; this one has {_listed(metadata)}. Add "
        "the column, or choose another verifier"
    )


_WITHOUT_MARKER: set[str] = set()
"""Names of verifiers for which this process has already logged the warning below."""


def _warn_without_marker(name: str, marker: str | None, file: str, completions: Sequence[str]) -> None:
    """Warn once if no answer has the verifier's marker: all scores are then 0, whatever the answers are."""
    if marker is None or name in _WITHOUT_MARKER or any(marker in completion for completion in completions):
        return
    _WITHOUT_MARKER.add(name)
    line = (
        f"none of {len(completions):,} answers has {marker!r}, after which the verifier `{name}` reads, so that each "
        "scores 0. Train on completions that have it, raise `max_new_tokens` if answers are cut before it, or choose "
        "another verifier."
    )
    log_lines(file, [line])


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _listed(metadata: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, metadata))) or "no fields"
