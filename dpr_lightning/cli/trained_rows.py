"""``dpr audit --rows train``: demonstrations that a run has learnt from, listed by when it learnt them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.suspicious_rows import list_suspects
from dpr_lightning.data import Rows, TokenizedDataset
from dpr_lightning.errors import counted
from dpr_lightning.evaluation.suspects import Suspect
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console
from dpr_lightning.rewards.suspicion import checkpoint_scores, suspicion, suspicious_tokens, token_threshold
from dpr_lightning.types import TokenScores

TOKEN_SHARE = 0.03
"""Share of all tokens above whose suspicion a token is marked, in rows that are listed."""
TRAINED = (
    "These rows were trained on: what π_SFT knows by heart looks right, mistakes too. Listed first are rows that the "
    "run learnt last, on average over its checkpoints. Mistakes are among them, and so are rare, right rows."
)


def list_trained(
    source: Rows,
    data: TokenizedDataset,
    sft: str,
    references: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: dict[str, str] | None,
    count: int,
    dtype: Dtype,
    output: Path | None,
) -> list[Suspect]:
    """List demonstrations that were trained on, those that look wrong first.

    Args:
        source: rows of the demonstrations.
        data: the same, as tokens.
        sft: folder of π_SFT.
        references: folders of earlier checkpoints of the same run; the more, the better.
        tokenizer: of π_SFT.
        columns: the file's names of our columns.
        count: demonstrations on the page, in which tokens are marked.
        dtype: of the models' parameters.
        output: JSON file beside which the page is written; None: no page.
    """
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    folders = [*references, sft]
    with progress_bar("demonstrations scored", len(data) * len(folders)) as advance:
        scored = [
            checkpoint_scores(frozen_policy(folder, dtype)[0], tokens, mask, progress=advance) for folder in folders
        ]
    suspected = suspicion([each.margin for each in scored], mask)
    listed = suspected.row.argsort(descending=True)[:count]
    flagged = suspicious_tokens(suspected, listed, token_threshold(suspected, TOKEN_SHARE))
    references_logprob = torch.stack([each.logprob for each in scored[:-1]])
    displayed = TokenScores(
        scored[-1].logprob,
        references_logprob,
        torch.full_like(suspected.token, float("nan")),
        -suspected.token,
        suspected.mask,
    )
    console.print(TRAINED, highlight=False, markup=False, soft_wrap=True)
    count_of_checkpoints = counted(len(folders), "checkpoint")
    words = f"mean margin by which {count_of_checkpoints} of the run prefer another token, with a minus sign"
    return list_suspects(
        source, data, displayed, tokenizer, words, columns=columns, count=count, output=output, flagged=flagged
    )
