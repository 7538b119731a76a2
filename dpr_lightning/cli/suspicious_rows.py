"""Demonstrations that an audit lists: printed, and on a page from which a reader exports those that are wrong."""

from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import Rows, TokenizedDataset, carried_format, open_rows, tokenize_rows
from dpr_lightning.data.held_out import SelectedRows
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.suspects import Suspect, suspects
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports import AuditedRow, token_responses, write_audit_page
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import decode_tokens
from dpr_lightning.types import TokenScores

AuditedRows = Literal["held_out", "train"]
PAGE = ".html"
PRINTED = 20
"""Rows on the console; the page has more."""
FLATTERED = (
    "These rows were trained on, so their rewards are flattered: what π_SFT has memorised looks right, mistakes too. "
    "Listed first are rows that SFT learnt late (a large positive log-ratio). Where it knows its rows by heart, after "
    "many epochs, mistakes are among them, and so are rare, right rows; after one or two epochs expect little."
)


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
        )

    data = tokenized(source, limit)
    data.report.log_notes()
    if exclude is not None:
        excluded = np.isin(data.prompt_hashes, tokenized(exclude, None).prompt_hashes)
        if excluded.all():
            raise InputError(f"`exclude` ({exclude}) has all prompts of {data.file}.")
        data = data.select(np.flatnonzero(~excluded))
    return data


def list_trained(
    source: Rows,
    data: TokenizedDataset,
    sft: str,
    reference: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    dtype: Dtype,
    output: Path | None,
) -> list[Suspect]:
    """List demonstrations that were trained on, by their log-ratio to an early reference.

    Args:
        source: rows of the demonstrations.
        data: the same, as tokens.
        sft: folder of π_SFT.
        reference: folder of an earlier checkpoint of the same run.
        tokenizer: of π_SFT.
        count: demonstrations on the page.
        dtype: of the models' parameters.
        output: JSON file beside which the page is written; None: no page.
    """
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    spec = RewardSpec()
    dense = DenseReward.from_folders(sft, [reference], spec, dtype=dtype)
    dense.frozen.to(best_device())
    with progress_bar("demonstrations scored", len(data)) as advance:
        scores = dense.score(tokens, mask, progress=advance)
    console.print(FLATTERED, highlight=False, markup=False, soft_wrap=True)
    reward = f"{spec.form} against {reference}"
    return list_suspects(source, data, scores, tokenizer, reward, count=count, output=output, learnt=True)


def list_suspects(
    source: Rows,
    data: TokenizedDataset,
    scores: TokenScores,
    tokenizer: PreTrainedTokenizerBase,
    reward: str,
    *,
    count: int,
    output: Path | None,
    learnt: bool = False,
) -> list[Suspect]:
    """Print the most suspicious demonstrations, and write them as a page.

    Args:
        source: rows of the demonstrations.
        data: the same, as tokens.
        scores: of all of them.
        tokenizer: decodes.
        reward: its form and reference, in words.
        count: demonstrations on the page.
        output: JSON file beside which the page is written; None: no page.
        learnt: the demonstrations were trained on.

    Returns:
        the demonstrations on the page, the most suspicious first.
    """
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    names = [data.where(row) for row in range(len(data))]
    every = suspects(scores.reward, tokens, mask, tokenizer, names, learnt=learnt)
    listed = every[:count]
    order = "highest total" if learnt else "lowest token"
    console.print(f"\nDemonstrations to look at, by their {order} reward:", style="bold")
    console.print(f"  {reward}", highlight=False, markup=False)
    for suspect in listed[:PRINTED]:
        value = suspect.total if learnt else suspect.reward
        line = f"  {value:+8.2f}  {suspect.where}  {suspect.before!r} [{suspect.token!r}] {suspect.after!r}"
        console.print(line, highlight=False, markup=False)
    if output is not None and listed:
        rows = _audited_rows(source, listed, data, scores, tokenizer)
        page = write_audit_page(output.with_suffix(PAGE), rows, reward=reward, total=len(every), learnt=learnt)
        console.print(
            f"{counted(len(rows), 'row')} to look at, and to mark as wrong: {page}", highlight=False, markup=False
        )
    return listed


def _audited_rows(
    source: Rows,
    listed: list[Suspect],
    data: TokenizedDataset,
    scores: TokenScores,
    tokenizer: PreTrainedTokenizerBase,
) -> list[AuditedRow]:
    """The rows of the page, with hashes of their content."""
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
    return [
        AuditedRow(
            rows[suspect.where].file,
            rows[suspect.where].number,
            row_hash(rows[suspect.where].values),
            suspect.action,
            response,
        )
        for suspect, response in zip(listed, responses, strict=True)
    ]
