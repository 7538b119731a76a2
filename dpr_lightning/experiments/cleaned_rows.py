"""Demonstrations of an arm without what looks wrong in them: by what trained policies say of them, or by a control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpr_lightning.data import Rows, carried_format, open_rows, tokenize_rows
from dpr_lightning.data.cleaning import FlaggedRow, change_of, write_cleaned
from dpr_lightning.data.conversations import to_demonstration
from dpr_lightning.data.held_out import rows_of
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.data.token_spans import spans_of_tokens
from dpr_lightning.errors import InputError
from dpr_lightning.experiments.flops import FlopSum
from dpr_lightning.functional.imitation import MARGIN, SURE
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.rewards.suspicion import (
    TOKEN_SHARE,
    CheckpointScores,
    checkpoint_scores,
    refused_tokens,
    suspicion,
    suspicious_tokens,
    token_threshold,
)

By = Literal["refused", "suspicion", "small_loss", "random"]


@dataclass
class CleanSpec:
    """How the demonstrations of an arm are cleaned before it trains on them.

    Args:
        by: what a row is listed for. ``refused``: ``policy`` is sure that one of its tokens is another one, by
            :func:`dpr_lightning.functional.is_trimmed`. ``suspicion``: the highest mean margin over π_SFT and the
            references, by :func:`dpr_lightning.rewards.suspicion.suspicion`. Controls: ``small_loss``, the highest
            loss under the first reference, and ``random``.
        how: ``drop`` listed rows, or ``mask`` their wrong-looking tokens (``refused`` and ``suspicion`` alone).
        rows: of all but ``refused``: share of the rows that is listed, or the name of an arm: as many as it lists.
        policy: of ``refused``: ``sft``, or an arm with ``train: sft``, such as one with ``trim``. Its training is part
            of what this arm costs.
        margin: of ``refused``, nats.
        sure: of ``refused``, a probability.
    """

    by: By = "refused"
    how: Literal["drop", "mask"] = "drop"
    rows: float | str | None = None
    policy: str = "sft"
    margin: float = MARGIN
    sure: float = SURE

    def __post_init__(self) -> None:
        """Refuse options that would be ignored, or that nothing follows from."""
        if self.by == "refused":
            if self.rows is not None:
                raise InputError("`clean` with `by: refused` lists the rows that the policy refuses: leave `rows` out.")
        elif self.policy != "sft":
            raise InputError(f"`clean.policy` is {self.policy!r}, which only `by: refused` reads: leave it out.")
        elif self.rows is None or (not isinstance(self.rows, str) and not 0 < self.rows < 1):
            raise InputError(
                f"`clean` with `by: {self.by}` has `rows: {self.rows}`: it is a share of the rows between 0 and 1, or "
                "the name of an arm that cleans, for as many rows as that lists."
            )
        if not (self.margin > 0 and 0 <= self.sure < 1):
            raise InputError(
                f"`clean` has margin {self.margin} and sure {self.sure}: the margin is in nats and above 0, `sure` a "
                "probability below 1."
            )
        if self.how == "mask" and self.by in ("small_loss", "random"):
            raise InputError(f"`by: {self.by}` lists rows and no tokens: `clean.how` is `drop` for it.")

    @property
    def arms(self) -> list[str]:
        """The arms that it depends on."""
        names = [self.policy] if self.by == "refused" else [self.rows] if isinstance(self.rows, str) else []
        return [name for name in names if name != "sft"]


class Listing(NamedTuple):
    """``flagged`` rows, and the floating-point ``operations`` of the forward passes that list them."""

    flagged: list[FlaggedRow]
    operations: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data: how many are listed, their numbers in the file, and the characters that look wrong."""
        rows = [{"number": row.number, "spans": [[span.start, span.end] for span in row.spans]} for row in self.flagged]
        return {"listed": len(rows), "rows": rows, "operations": self.operations}


def write_cleaned_rows(
    clean: CleanSpec,
    source: Rows,
    output: Path,
    *,
    columns: Mapping[str, str] | None,
    policy: Path,
    references: Sequence[Path],
    count: int | None,
    seed: int,
) -> Listing:
    """Write the demonstrations of an arm.

    Args:
        clean: how.
        source: the demonstrations that π_SFT was trained on.
        output: file to write.
        columns: the source's names of our columns.
        policy: folder of what refuses tokens, or of π_SFT.
        references: earlier checkpoints of π_SFT's run, the first of which is the control's.
        count: rows to list; None: by ``clean.rows``, a share.
        seed: of random rows.

    Raises:
        InputError: a row is wrong, or none remains.
    """
    tokenizer = load_tokenizer(str(policy))
    form = carried_format(tokenizer, str(policy))
    data = tokenize_rows(open_rows(source), tokenizer, form, columns=columns, weighted=False)
    rows = rows_of(source, data)
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    count = round(float(clean.rows or 0.0) * len(data)) if count is None else count
    with FlopSum() as counter:
        listed, marks = _listed(clean, tokens, mask, policy, references, count, seed)
    flagged = []
    for index in listed:
        row, example = rows[index], data.example(index)
        wrong = marks[index, : sum(example.mask)].tolist()
        spans = tuple(span for span, _ in spans_of_tokens(to_demonstration(row, columns), example, wrong, tokenizer))
        flagged.append(FlaggedRow(row.file, row.number, row_hash(row.values), row.location, spans))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_cleaned(open_rows(source), flagged, output, change_of(clean.how, flagged, None, 1.0), columns)
    return Listing(flagged, float(counter.total))


def _listed(
    clean: CleanSpec,
    tokens: Tensor,
    mask: Tensor,
    policy: Path,
    references: Sequence[Path],
    count: int,
    seed: int,
) -> tuple[list[int], Tensor]:
    """Indices of the listed rows, and [B, T] the tokens in them that look wrong."""

    def scored(folder: Path) -> CheckpointScores:
        return checkpoint_scores(frozen_policy(str(folder))[0], tokens, mask)

    none = torch.zeros(mask.shape, dtype=torch.bool)
    if clean.by == "refused":
        refused = refused_tokens(scored(policy), clean.margin, clean.sure)
        return refused.any(1).nonzero().squeeze(1).tolist(), refused
    if clean.by == "random":
        return np.random.default_rng(seed).permutation(len(mask))[:count].tolist(), none
    if clean.by == "small_loss":
        loss = -scored(references[0]).logprob.sum(1) / mask.sum(1)
        return loss.argsort(descending=True)[:count].tolist(), none
    suspected = suspicion([scored(folder).margin for folder in (*references, policy)], mask)
    rows = suspected.row.argsort(descending=True)[:count]
    return rows.tolist(), suspicious_tokens(suspected, rows, token_threshold(suspected, TOKEN_SHARE))
