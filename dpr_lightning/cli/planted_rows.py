"""``dpr audit --plant``: mistakes in a copy of the training rows, and how many of them the top of its list has."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.repeated_training import train_on
from dpr_lightning.cli.suspicious_rows import load_demonstrations
from dpr_lightning.cli.trained_rows import Audited, Method, suspect
from dpr_lightning.data import Row, carried_format, to_demonstration, tokenize_examples
from dpr_lightning.data.held_out import rows_of
from dpr_lightning.data.loss_spans import LOSS_SPANS
from dpr_lightning.data.prompt_identity import prompt_hash
from dpr_lightning.data.replaced_answers import with_answer
from dpr_lightning.errors import counted
from dpr_lightning.evaluation.list_precision import ListPrecision, list_precision, worst_order
from dpr_lightning.evaluation.planted_mistakes import MistakeKind, PlantedMistake, describe_kinds, plant_mistakes
from dpr_lightning.folders import whole_file
from dpr_lightning.reports import ListTrust, Panel, Series
from dpr_lightning.reports.console import console
from dpr_lightning.run_manifest import RunManifest

SFT, MISTAKES = "sft", "mistakes.jsonl"


@dataclass(frozen=True)
class Planting:
    """What is planted.

    Attributes:
        share: of the rows.
        seed: of which rows and which mistakes.
        manifest: of the run whose SFT is repeated on the copy.
        folder: of the copy and its trainings.
    """

    share: float
    seed: int
    manifest: RunManifest
    folder: Path

    def describe(self, method: Method) -> str:
        """What it costs, in a sentence."""
        steps = counted(self.manifest.sft_steps, "step")
        folds = 0.0 if method.folds is None else method.folds.cost
        return (
            f"SFT is repeated on a copy with planted mistakes: {1 + folds:.2g} times its {steps}. What has ended is "
            f"not trained again; it is in {self.folder}."
        )


class Planted(NamedTuple):
    """``kinds`` of the planted mistakes in the order of the copy's list, and the ``precision`` of that."""

    kinds: list[MistakeKind]
    precision: ListPrecision

    def words(self) -> str:
        """What the list is worth on these rows, in a few sentences."""
        precision, first = self.precision, self.precision.firsts[:3][-1]
        hits, (low, high) = precision.hits(first), precision.recall_interval(first)
        planted, rows = counted(precision.mistakes, "mistake"), counted(precision.rows, "row")
        return (
            f"Of {planted} planted in a copy of the {rows}, the first {counted(first, 'row')} listed have {hits}: "
            f"{describe_kinds(self.kinds, self.kinds[:hits])}. That is {precision.recall(first):.0%}, with a 95% "
            f"interval of {low:.0%} to {high:.0%}. Half of all are among the first {precision.rows_with(0.5):,}, and "
            f"nine in ten among the first {precision.rows_with(0.9):,}. Other listed rows may be wrong themselves, so "
            "that this is a lower bound of how many are. Mistakes of other kinds, and those that agree with each "
            "other, may rank lower."
        )

    def trust(self) -> ListTrust:
        """The same for the page."""
        precision = self.precision
        recall, values = zip(*precision.curve(), strict=True)
        series = [Series("precision", recall, values)]
        chance = {"chance": precision.mistakes / precision.rows}
        panel = Panel("Precision of the list", series, levels=chance, over="share of the planted mistakes above")
        tops = [(first, precision.hits(first)) for first in precision.firsts]
        return ListTrust(self.words(), tops, precision.mistakes, precision.average_precision, panel)

    def to_dict(self, share: float) -> dict[str, Any]:
        """Plain data."""
        return {"share": share, "kinds": self.kinds, "words": self.words(), **self.precision.to_dict()}


def measure_list(
    audited: Audited,
    method: Method,
    planting: Planting,
    tokenizer: PreTrainedTokenizerBase,
    columns: dict[str, str] | None,
    max_length: int | None,
) -> Planted:
    """Plant mistakes in a copy of the rows, repeat SFT and the folds on it, and see where its list has them.

    Args:
        audited: the rows that were trained on.
        method: how suspicion is measured.
        planting: what is planted.
        tokenizer: of π_SFT.
        columns: the file's names of our columns.
        max_length: tokens of the longest demonstration.

    Raises:
        InputError: no mistake can be planted, or the recipe cannot be repeated.
    """
    _, first, copied = np.unique(audited.data.numbers, return_index=True, return_inverse=True)
    rows = rows_of(audited.source, audited.data)
    distinct = [rows[index] for index in first]
    mistakes = _plant(distinct, audited, planting, tokenizer, columns)
    changed = {mistake.index: with_answer(distinct[mistake.index], mistake.text, columns) for mistake in mistakes}
    console.print(planting.describe(method), highlight=False, markup=False, soft_wrap=True)
    _write_mistakes(planting.folder / MISTAKES, mistakes, distinct)
    shares = [float(share) for share in planting.manifest.references]
    copy = [changed.get(number) or distinct[number].values for number in copied.tolist()]
    steps = planting.manifest.sft_steps
    policies = train_on(copy, planting.manifest, planting.folder / SFT, steps=steps, references=shares)
    source = str(planting.folder / f"{SFT}.jsonl")
    data = load_demonstrations(source, tokenizer, audited.sft, columns=columns, limit=None, max_length=max_length)
    if method.folds is not None:
        method = method._replace(folds=replace(method.folds, folder=planting.folder))
    run = RunManifest.load(planting.folder / SFT)
    copied_rows = Audited(source, data, str(policies / "final"), [*run.references.values()])
    suspected = suspect(copied_rows, method, int(tokenizer.pad_token_id)).suspicion
    kinds = {mistake.index: mistake.kind for mistake in mistakes}
    scores = np.zeros(len(distinct))
    scores[copied[data.numbers - 1]] = suspected.row.double().numpy()
    listed = [kinds.get(index) for index in worst_order(scores, np.isin(np.arange(len(distinct)), [*kinds]))]
    return Planted([kind for kind in listed if kind is not None], list_precision([kind is not None for kind in listed]))


def _plant(
    rows: Sequence[Row],
    audited: Audited,
    planting: Planting,
    tokenizer: PreTrainedTokenizerBase,
    columns: dict[str, str] | None,
) -> list[PlantedMistake]:
    """Mistakes in rows whose answers can be replaced; none where a part of a row is not learnt.

    No row becomes longer than the longest one, for which the run has a limit, or the policy positions; and none gets
    another answer to its own prompt.
    """
    answers = [to_demonstration(row, columns).learnt_contents[-1] for row in rows]
    spans = LOSS_SPANS if columns is None else columns.get(LOSS_SPANS, LOSS_SPANS)
    longest, form = int(audited.data.lengths.max()), carried_format(tokenizer, audited.sft)
    prompts = [prompt_hash(to_demonstration(row, columns).prompt_text) for row in rows]
    right: dict[int, set[str]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        right.setdefault(prompt, set()).add(answer)

    def is_possible(index: int, text: str) -> bool:
        if text in right[prompts[index]]:
            return False
        values = None if rows[index].values.get(spans) else with_answer(rows[index], text, columns)
        if values is None:
            return False
        example = to_demonstration(rows[index]._replace(values=values), columns)
        return len(tokenize_examples([example], tokenizer, form, on_dropped="warn")[0].tokens) <= longest

    return plant_mistakes(answers, planting.share, planting.seed, is_possible)


def _write_mistakes(path: Path, mistakes: Sequence[PlantedMistake], rows: Sequence[Row]) -> None:
    with whole_file(path) as stream:
        for mistake in mistakes:
            row = rows[mistake.index]
            entry = {"file": row.file, "row": row.number, "kind": mistake.kind, "answer": mistake.text}
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
