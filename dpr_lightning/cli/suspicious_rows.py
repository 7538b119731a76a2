"""Demonstrations that an audit lists: printed, and on a page from which a reader exports those that are wrong."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import Rows, TokenizedDataset, carried_format, open_rows, tokenize_rows
from dpr_lightning.data.cleaning import SUSPICION
from dpr_lightning.data.conversations import to_demonstration
from dpr_lightning.data.held_out import SelectedRows
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.data.token_spans import spans_of_tokens
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.suspects import Suspect, suspects
from dpr_lightning.folders import whole_file
from dpr_lightning.reports import AuditedRow, ListTrust, token_responses, write_audit_page
from dpr_lightning.reports.console import console
from dpr_lightning.rollouts import decode_tokens
from dpr_lightning.types import TokenScores

AuditedRows = Literal["held_out", "train"]
PAGE, LIST = ".html", ".listed.jsonl"
PRINTED = 20
"""Rows on the console; the page has more."""


class TrainedRows(NamedTuple):
    """What is listed of rows that were trained on.

    ``suspicion`` [B] by which they are ordered, ``flagged`` [B, T] suspicious tokens, ``explanation``: which rows come
    first, in a sentence or two; ``trust``: how far the list can be trusted, where that was measured.
    """

    suspicion: Tensor
    flagged: Tensor
    explanation: str
    trust: ListTrust | None = None


def load_demonstrations(
    source: Rows,
    tokenizer: PreTrainedTokenizerBase,
    sft: str,
    *,
    columns: dict[str, str] | None,
    limit: int | None,
    exclude: Rows | None = None,
    max_length: int | None = None,
) -> TokenizedDataset:
    """Demonstrations in the format of π_SFT.

    Args:
        source: their rows.
        tokenizer: of π_SFT.
        sft: folder of π_SFT.
        columns: the file's names of our columns.
        limit: read only so many rows; None: all.
        exclude: rows whose prompts are left out.
        max_length: tokens; longer demonstrations are left out.

    Raises:
        InputError: a row is wrong, or none remains.
    """
    form = carried_format(tokenizer, sft)

    def tokenized(rows: Rows, limit: int | None) -> TokenizedDataset:
        return tokenize_rows(
            open_rows(rows),
            tokenizer,
            form,
            columns=columns,
            max_length=max_length,
            over_length="drop",
            on_dropped="warn",
            limit=limit,
            weighted=False,
        )

    data = tokenized(source, limit)
    data.report.log_notes()
    if exclude is not None:
        excluded = np.isin(data.prompt_hashes, tokenized(exclude, None).prompt_hashes)
        if excluded.all():
            raise InputError(f"`exclude` ({exclude}) has all prompts of {data.file}.")
        data = data.select(np.flatnonzero(~excluded))
    return data


def list_suspects(
    source: Rows,
    data: TokenizedDataset,
    scores: TokenScores,
    tokenizer: PreTrainedTokenizerBase,
    reward: str,
    *,
    columns: dict[str, str] | None,
    count: int,
    output: Path | None,
    trained: TrainedRows | None = None,
) -> list[Suspect]:
    """Print the most suspicious demonstrations, and write them as a page.

    Args:
        source: rows of the demonstrations.
        data: the same, as tokens.
        scores: of all of them.
        tokenizer: decodes.
        reward: its form and reference, in words.
        columns: the file's names of our columns.
        count: demonstrations on the page.
        output: JSON file beside which the page is written, and a list of the same rows with the parts to mask; None:
            nothing is written.
        trained: order and suspicious tokens of rows that were trained on; None: of each row the token of lowest reward,
            by which rows are ordered.

    Returns:
        the demonstrations on the page, the most suspicious first.
    """
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    names = [data.where(row) for row in range(len(data))]
    ranked_by = None if trained is None else trained.suspicion
    every = suspects(scores.reward, tokens, mask, tokenizer, names, suspicion=ranked_by)
    listed = every[:count]
    order = "lowest token reward" if trained is None else "suspicion"
    console.print(f"\nDemonstrations to look at, by their {order}:", style="bold")
    console.print(f"  {reward}", highlight=False, markup=False)
    for suspect in listed[:PRINTED]:
        value = suspect.reward if trained is None else suspect.mean
        line = f"  {value:+8.2f}  {suspect.where}  {suspect.before!r} [{suspect.token!r}] {suspect.after!r}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if output is not None and listed:
        flagged = None if trained is None else trained.flagged
        rows = _audited_rows(source, listed, data, scores, tokenizer, columns, flagged)
        page = write_audit_page(
            output.with_suffix(PAGE),
            rows,
            reward=reward,
            total=len(every),
            learnt=None if trained is None else trained.explanation,
            trust=None if trained is None else trained.trust,
        )
        flagged_rows = output.with_suffix(LIST)
        with whole_file(flagged_rows) as stream:
            stream.writelines(json.dumps(row.exported, ensure_ascii=False) + "\n" for row in rows)
        console.print(
            f"{counted(len(rows), 'row')} to look at, and to mark as wrong: {page}\nAll of them, as `dpr clean` takes "
            f"them: {flagged_rows}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return listed


def _audited_rows(
    source: Rows,
    listed: list[Suspect],
    data: TokenizedDataset,
    scores: TokenScores,
    tokenizer: PreTrainedTokenizerBase,
    columns: dict[str, str] | None,
    flagged: Tensor | None,
) -> list[AuditedRow]:
    """The rows of the page, with hashes of their content and the characters of their suspicious tokens."""
    indices = np.array([suspect.index for suspect in listed])
    tokens, mask, *_ = data.batch(indices, 1.0, int(tokenizer.pad_token_id))
    prompts = [
        decode_tokens(tokenizer, row[: int(acted.long().argmax())].tolist())
        for row, acted in zip(tokens, mask, strict=True)
    ]
    selected = TokenScores(
        scores.policy_logprob[indices],
        scores.reference_logprobs[:, indices],
        scores.divergence[indices],
        scores.reward[indices],
        scores.mask[indices],
    )
    responses = token_responses(tokens, mask, selected, tokenizer, prompts=prompts)
    rows = {row.location: row for row in SelectedRows(open_rows(source), data.numbers[indices].tolist())}
    audited = []
    for suspect, response in zip(listed, responses, strict=True):
        row, marks = rows[suspect.where], [False] * len(response.tokens)
        marks[suspect.action] = True
        if flagged is not None:
            marks = flagged[suspect.index, : len(marks)].tolist()
        marked = spans_of_tokens(to_demonstration(row, columns), data.example(suspect.index), marks, tokenizer)
        reward = np.array(response.reward)
        values = [round(-float(reward[list(actions)].mean()), 3) for _, actions in marked]
        spans = [span for span, _ in marked]
        audited.append(
            AuditedRow(
                row.file,
                row.number,
                row_hash(row.values),
                suspect.action,
                response,
                tuple(span.to_dict() | {SUSPICION: value} for span, value in zip(spans, values, strict=True)),
            )
        )
    return audited
