"""``dpr audit --rows train``: demonstrations that a run has learnt from, those that look wrong first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.repeated_training import Folds, fold_scores
from dpr_lightning.cli.suspicious_rows import TrainedRows, list_suspects
from dpr_lightning.data import Rows, TokenizedDataset
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.suspects import Suspect
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports import ListTrust
from dpr_lightning.reports.console import console
from dpr_lightning.rewards.suspicion import (
    TOKEN_SHARE,
    CheckpointScores,
    Suspicion,
    checkpoint_scores,
    combined_suspicion,
    refused_tokens,
    suspicion,
    suspicious_tokens,
    token_threshold,
)
from dpr_lightning.types import TokenScores

SuspicionKind = Literal["memorised", "refused", "crossfitted", "combined"]
OF_THE_RUN = ("memorised", "refused")
"""Kinds that take the run's own policies alone."""
TRAINED = "These rows were trained on: what π_SFT knows by heart looks right, mistakes too."
LISTED_FIRST: dict[SuspicionKind, str] = {
    "memorised": "Listed first are rows that the run learnt last: its checkpoints preferred other tokens, on average "
    "over the run.",
    "refused": "Listed are rows with a token of which the policy is sure that it is another one, although it was "
    "trained on it: with `trim`, such tokens are not learnt by heart.",
    "crossfitted": "Listed first are rows that are contradicted by a policy which learnt from other rows alone: it "
    "prefers other tokens.",
    "combined": "Listed first are rows that the run learnt last, and that are contradicted by a policy which learnt "
    "from other rows alone: the mean of the two ranks is the highest.",
}
BOTH = "Mistakes are among them, and so are rare, right rows."


class Audited(NamedTuple):
    """Demonstrations that were trained on, with the policies that say what looks wrong.

    ``source`` and ``data``: the rows and their tokens; ``sft``: folder of π_SFT; ``references``: folders of earlier
    checkpoints of the same run, the more the better.
    """

    source: Rows
    data: TokenizedDataset
    sft: str
    references: Sequence[str]


class Method(NamedTuple):
    """How suspicion is measured: its kind, the folds of cross-fitting, and whether margins are divided by 1 + entropy.

    ``folds`` is None for kinds that take the run's own policies alone.
    """

    kind: SuspicionKind
    folds: Folds | None
    normalised: bool
    dtype: Dtype

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the cost of the folds as a multiple of the run's SFT."""
        result: dict[str, Any] = {"kind": self.kind, "normalised": self.normalised}
        if self.folds is not None:
            result |= {"folds": self.folds.count, "steps_of_a_fold": self.folds.steps, "times_sft": self.folds.cost}
        return result


def method_of(
    kind: SuspicionKind | None, folds: Folds | None, *, normalised: bool = False, dtype: Dtype = "float32"
) -> Method:
    """The method that options of `dpr audit` name; without a kind, all that there is to combine.

    Raises:
        InputError: the kind needs folds and there are none, or it has no use for them.
    """
    if kind is None:
        kind = "memorised" if folds is None else "combined"
    if kind in OF_THE_RUN and folds is not None:
        raise InputError(
            f"`suspicion: {kind}` takes the run's own checkpoints, and `folds` would be trained for nothing. Leave one "
            "of the two out."
        )
    if kind not in OF_THE_RUN and folds is None:
        raise InputError(
            f"`suspicion: {kind}` needs policies that did not learn from the rows. Set `folds`, such as 4: that trains "
            "one for each fold."
        )
    return Method(kind, folds, normalised, dtype)


class Suspected(NamedTuple):
    """``suspicion`` of all demonstrations, and ``scores`` [B, T] by each checkpoint of the run, π_SFT the last.

    ``refused`` [B, T]: tokens that the policy refuses, for the kind of that name; rows without one have suspicion 0.
    """

    suspicion: Suspicion
    scores: list[CheckpointScores]
    refused: Tensor | None = None


def suspect(audited: Audited, method: Method, pad: int) -> Suspected:
    """Score demonstrations by the checkpoints of the run, and by the policies of the folds, which are trained first.

    Args:
        audited: the demonstrations.
        method: how suspicion is measured.
        pad: token id of the padding.
    """
    source, data, dtype = audited.source, audited.data, method.dtype
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, pad)
    parts = []
    if method.folds is not None:
        crossfitted = fold_scores(source, data, pad, method.folds, dtype, entropy=method.normalised)
        parts.append(_suspicion([crossfitted], mask, method))
    folders = [*audited.references, audited.sft]
    with progress_bar("demonstrations scored", len(data) * len(folders)) as advance:
        scores = [
            checkpoint_scores(
                frozen_policy(folder, dtype)[0], tokens, mask, entropy=method.normalised, progress=advance
            )
            for folder in folders
        ]
    if method.kind == "refused":
        refused, by_margin = refused_tokens(scores[-1]), _suspicion(scores[-1:], mask, method)
        return Suspected(by_margin._replace(row=by_margin.row.masked_fill(~refused.any(1), 0.0)), scores, refused)
    if method.kind != "crossfitted":
        parts.append(_suspicion(scores, mask, method))
    return Suspected(parts[0] if len(parts) == 1 else combined_suspicion(parts), scores)


def list_trained(
    audited: Audited,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: dict[str, str] | None,
    count: int,
    output: Path | None,
    trust: ListTrust | None = None,
) -> list[Suspect]:
    """List demonstrations that were trained on, those that look wrong first.

    Args:
        audited: the demonstrations.
        method: how suspicion is measured.
        tokenizer: of π_SFT.
        columns: the file's names of our columns.
        count: demonstrations on the page, in which tokens are marked.
        output: JSON file beside which the page is written; None: no page.
        trust: how far the list can be trusted, for the page.
    """
    suspected, scores, refused = suspect(audited, method, int(tokenizer.pad_token_id))
    if refused is not None:
        flagged, count = refused, min(count, int(refused.any(1).sum()))
    else:
        listed = suspected.row.argsort(descending=True)[:count]
        flagged = suspicious_tokens(suspected, listed, token_threshold(suspected, TOKEN_SHARE))
    displayed = TokenScores(
        scores[-1].logprob,
        torch.stack([each.logprob for each in scores[:-1]]),
        torch.full_like(suspected.token, float("nan")),
        -suspected.token,
        suspected.mask,
    )
    if not count:
        console.print("The policy refuses no token of the demonstrations that it was trained on: no row is listed.")
        return []
    explanation = LISTED_FIRST[method.kind]
    console.print(f"{TRAINED} {explanation} {BOTH}", highlight=False, markup=False, soft_wrap=True)
    return list_suspects(
        audited.source,
        audited.data,
        displayed,
        tokenizer,
        _units(method, len(scores)),
        columns=columns,
        count=count,
        output=output,
        trained=TrainedRows(suspected.row, flagged, explanation, trust),
    )


def _suspicion(scores: Sequence[CheckpointScores], mask: Tensor, method: Method) -> Suspicion:
    return suspicion([each.normalised_margin() if method.normalised else each.margin for each in scores], mask)


def _units(method: Method, checkpoints: int) -> str:
    """What the numbers of tokens are, in words."""
    margins = {
        "memorised": f"mean margin by which {counted(checkpoints, 'checkpoint')} of the run prefer another token",
        "refused": "margin by which the policy prefers another token",
        "crossfitted": "margin by which a policy that did not learn from the row prefers another token",
        "combined": f"margin by which another token is preferred, the mean of {counted(checkpoints, 'checkpoint')} of "
        "the run and of a policy that did not learn from the row",
    }
    normalised = ", each divided by 1 + the entropy of the policy there" if method.normalised else ""
    return f"{margins[method.kind]}{normalised}, with a minus sign"
