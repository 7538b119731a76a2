"""Procedural tasks with a verifier: demonstrations with rationales, from reasoning-gym's generators.

Every rationale ends in ``Answer: X`` and is checked by the task's scorer. Prompts are distinct by text, within a split
and across splits.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation import rationales
from dpr_lightning.evaluation.verifiers import ANSWER_MARKER, import_reasoning_gym, reasoning_gym, unknown_name
from dpr_lightning.folders import whole_file

Row = dict[str, Any]

# Draws allowed for each prompt before a task counts as exhausted.
DRAWS_PER_ROW = 200


@dataclass(frozen=True)
class Task:
    """A generator of reasoning-gym with a program that writes its worked solutions.

    ``rationale`` and ``short_prompt`` take the metadata of an item; ``defaults`` are settings of the generator.
    """

    rationale: Callable[[Mapping[str, Any], rationales.Detail], str]
    short_prompt: Callable[[Mapping[str, Any]], str]
    defaults: Mapping[str, Any] = field(default_factory=dict)


# Short prompts end in a sign, so that byte-pair tokenizers split there and the prompt stays a token prefix.
TASKS: dict[str, Task] = {
    "chain_sum": Task(
        rationales.chain_sum_rationale,
        lambda metadata: f"{metadata['expression']} =",
        {"min_terms": 3, "max_terms": 5, "min_digits": 2, "max_digits": 2},
    ),
    "products": Task(
        rationales.products_rationale,
        lambda metadata: f"{metadata['expression']} =",
        {"min_digits": 2, "max_digits": 2},
    ),
    "spell_backward": Task(
        rationales.spell_backward_rationale,
        lambda metadata: f"{metadata['word']}:",
        {"min_word_len": 5, "max_word_len": 9},
    ),
    "letter_counting": Task(
        rationales.letter_counting_rationale,
        lambda metadata: f"{metadata['target_letter']} in {' '.join(metadata['span'])}:",
        {"min_words": 4, "max_words": 8},
    ),
}


def make_task(
    name: str,
    count: int,
    seed: int = 0,
    *,
    short_prompt: bool = False,
    rationale: str = "digits",
    operators: str = "+-",
    non_negative: bool = False,
    exclude: Iterable[str] = (),
    **config: Any,
) -> list[Row]:
    """Create ``count`` demonstrations with distinct prompts.

    Args:
        name: one of ``TASKS``.
        count: number of rows.
        seed: rows of different seeds are unrelated (the generators alone would repeat them, shifted by one).
        short_prompt: the bare problem, ``12 + 34 =``, instead of the question in English and a line break.
        rationale: ``digits`` writes out every column and carry, ``running`` intermediate results alone.
        operators: for chain_sum: skip problems with another operator; ``"+"`` is easier.
        non_negative: for chain_sum: skip problems with a running total below 0.
        exclude: prompts that must not appear.
        config: settings of the generator, over the task's defaults: ``min_terms``, ``max_digits``, ``max_word_len``, …

    Returns:
        Rows ``{"prompt", "completion", "answer", "metadata"}``. The metadata has the fields of the ``answer`` and
        ``reasoning_gym`` verifiers.

    Raises:
        InputError: unknown task or setting, reasoning-gym missing, or fewer than ``count`` distinct problems.
    """
    _check_options(name, count, rationale, operators)
    task = TASKS[name]
    seen, rows = set(exclude), []
    entries = (entry for entry in _entries(name, count, seed, config) if _passes(name, entry, operators, non_negative))
    for entry in entries:
        prompt = task.short_prompt(entry["metadata"]) if short_prompt else f"{entry['question']}\n"
        if prompt in seen:
            continue
        seen.add(prompt)
        rows.append(_row(name, prompt, entry, rationale))
        if len(rows) == count:
            return rows
    settings = {**task.defaults, **config}
    raise InputError(
        f"Only {len(rows)} of {count} distinct {name} problems turned up in {DRAWS_PER_ROW * count} draws with the "
        f"settings {settings}. Ask for fewer rows, or widen the settings: more terms, digits or words."
    )


def make_splits(name: str, sizes: Mapping[str, int], seed: int = 0, **config: Any) -> dict[str, list[Row]]:
    """Create several splits whose prompts are disjoint by text.

    Each split has a separate random stream, and skips prompts of the splits before it. Listed first, the test split is
    the same for all sizes of the later ones; a larger split begins with the rows of a smaller one.

    Args:
        name: one of ``TASKS``.
        sizes: rows of each split, by name.
        seed: of all splits.
        config: as for :func:`make_task`.

    Raises:
        InputError: as :func:`make_task`.
    """
    splits: dict[str, list[Row]] = {}
    taken: set[str] = set(config.pop("exclude", ()))
    for split, count in sizes.items():
        splits[split] = make_task(name, count, _mixed(seed, split), exclude=taken, **config)
        taken.update(row["prompt"] for row in splits[split])
    return splits


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Write rows as JSON lines atomically: an interrupted call leaves the old file, or none."""
    with whole_file(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Path(path)


def _check_options(name: str, count: int, rationale: str, operators: str) -> None:
    """Refuse unknown names and numbers out of range."""
    if name not in TASKS:
        raise InputError(unknown_name("task", name, TASKS))
    if count < 1:
        raise InputError(f"`count` is {count} rows of {name}; it must be one or more.")
    if rationale not in rationales.DETAILS:
        raise InputError(unknown_name("rationale", rationale, rationales.DETAILS))
    if not operators or set(operators) - set("+-"):
        raise InputError(f"operators={operators!r} is not one of '+', '-' and '+-'.")
    if operators not in ("+-", "-+") and name != "chain_sum":
        raise InputError(f"operators={operators!r} is a setting of chain_sum; {name} does not have it.")


def _entries(name: str, count: int, seed: int, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Problems of the generator, as many as draws are allowed."""
    gym = import_reasoning_gym()
    settings = {**TASKS[name].defaults, **config}
    # The generators seed problem i with seed + i, so neighbouring seeds would share all problems but one.
    start = _mixed(seed, name)
    try:
        dataset = gym.create_dataset(name, seed=start, size=DRAWS_PER_ROW * count, **settings)
    except TypeError as error:
        known = [option.name for option in fields(gym.create_dataset(name).config)]
        odd = [option for option in settings if option not in known]
        named = unknown_name(f"setting of {name}", odd[0], known) if odd else str(error)
        raise InputError(named) from error
    except AssertionError as error:
        raise InputError(f"{name} refuses the settings {settings}: {error}.") from error
    for index in range(DRAWS_PER_ROW * count):
        yield dataset[index]


def _passes(name: str, entry: Mapping[str, Any], operators: str, non_negative: bool) -> bool:
    """Whether a problem passes ``operators`` and ``non_negative``, which the generator does not offer."""
    if name != "chain_sum":
        return True
    expression = entry["metadata"]["expression"]
    if set(expression.split(" ")[1::2]) - set(operators):
        return False
    terms = rationales.signed_terms(expression)
    return not non_negative or all(sum(terms[: count + 1]) >= 0 for count in range(len(terms)))


def _row(name: str, prompt: str, entry: Mapping[str, Any], detail: Any) -> Row:
    """A demonstration, checked against the task's scorer."""
    steps = TASKS[name].rationale(entry["metadata"], detail)
    completion = f"{steps}\n{ANSWER_MARKER} {entry['answer']}" if steps else f"{ANSWER_MARKER} {entry['answer']}"
    metadata = {
        "source_dataset": name,
        "question": entry["question"],
        "answer": entry["answer"],
        **{key: value for key, value in entry["metadata"].items() if key not in ("source_dataset", "difficulty")},
    }
    if reasoning_gym(prompt, completion, metadata) != 1.0:
        raise RuntimeError(f"The {name} rationale fails its own task's scorer: {completion!r} for {prompt!r}.")
    return {"prompt": prompt, "completion": completion, "answer": entry["answer"], "metadata": metadata}


def _mixed(seed: int, label: str) -> int:
    """A 48-bit hash of seed and label, so that neighbouring seeds give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{label}/{seed}".encode()).digest()[:6], "big")
