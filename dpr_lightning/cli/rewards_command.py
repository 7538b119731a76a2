"""``dpr rewards``: the token rewards of responses in a file, as Parquet and as a heat-map."""

from pathlib import Path
from typing import Annotated

import numpy as np
from datasets import Dataset
from pyarrow.parquet import write_table

from dpr_lightning.data import Rows, carried_format, open_rows, tokenize_rows
from dpr_lightning.errors import counted
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Writes
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports import token_responses, write_heatmap
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import decode_tokens


def rewards(
    sft: ReadPath,
    references: list[ReadPath],
    responses: Rows,
    output: Annotated[
        str, Writes("rewards.parquet", marks=("reference_logprob",)), Writes("heatmap.html", marks=REPORT_MARKS)
    ],
    reward: RewardSpec | None = None,
    columns: dict[str, str] | None = None,
    limit: int | None = None,
    heatmap_rows: int = 200,
    dtype: Dtype = "float32",
    token_budget: int | None = None,
) -> None:
    """Score every token of prompt/response pairs with the reward of an SFT run's checkpoints.

    Args:
        sft: folder of π_SFT.
        references: folders of earlier checkpoints of the same run.
        responses: file of prompt/completion or messages rows (JSONL, Parquet) or a dataset name.
        output: folder for rewards.parquet and heatmap.html.
        reward: form of the reward.
        columns: names of columns.
        limit: score the first so many rows.
        heatmap_rows: rows in the heat-map.
        dtype: of the models' parameters.
        token_budget: tokens read at once; None: as many as have a GiB of logits.
    """
    tokenizer = load_tokenizer(sft)
    form = carried_format(tokenizer, sft)
    data = tokenize_rows(open_rows(responses), tokenizer, form, columns=columns, on_dropped="warn", limit=limit)
    data.report.log_notes()
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    starts = mask.long().argmax(1).tolist()
    prompts = [decode_tokens(tokenizer, row[:start].tolist()) for row, start in zip(tokens, starts, strict=True)]
    dense = DenseReward.from_folders(sft, references, reward or RewardSpec(), dtype=dtype)
    dense.frozen.to(best_device())
    with progress_bar("responses scored", len(data)) as advance:
        scores = dense.score(tokens, mask, token_budget=token_budget, divergence=True, progress=advance)
    scored = token_responses(tokens, mask, scores, tokenizer, prompts=prompts)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    table = [
        {
            "file": data.where(index).rpartition(":")[0],
            "row": int(data.where(index).rpartition(":")[2]),
            "prompt": response.prompt,
            "tokens": list(response.tokens),
            "token_ids": tokens[index][mask[index]].tolist(),
            "reward": list(response.reward),
            "policy_logprob": list(response.policy_logprob),
            "reference_logprob": list(response.reference_logprob),
            "divergence": scores.divergence[index][scores.mask[index]].tolist(),
            "total_reward": float(sum(response.reward)),
        }
        for index, response in enumerate(scored)
    ]
    write_table(Dataset.from_list(table).data.table, folder / "rewards.parquet")
    write_heatmap(
        folder / "heatmap.html",
        scored[:heatmap_rows],
        note=f"π_SFT: {sft}; {'references' if len(references) > 1 else 'reference'}: {', '.join(references)}",
    )
    console.print(
        f"{counted(len(data), 'response')}, {counted(int(mask.sum()), 'token')}: {folder}/rewards.parquet, "
        f"{folder}/heatmap.html"
    )
