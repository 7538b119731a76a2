"""``dpr rewards``: the token rewards of responses in a file, as Parquet and as a heat-map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from datasets import Dataset
from pyarrow.parquet import write_table

from dpr_lightning.cli.loading import best_device, console, progress_bar
from dpr_lightning.data import Rows, carried_format, open_rows, tokenize_rows
from dpr_lightning.errors import counted
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Writes
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.reports import Pair, Response, write_heatmap
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import decode_tokens
from dpr_lightning.types import TokenScores

MOST_PAIRS = 12


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
    dtype: str = "float32",
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
    dense = DenseReward.from_folders(sft, references, reward, dtype=dtype)
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
    write_heatmap(folder / "heatmap.html", scored[:heatmap_rows], note=f"π_SFT: {sft}; references: {references}")
    console.print(
        f"{counted(len(data), 'response')}, {counted(int(mask.sum()), 'token')}: {folder}/rewards.parquet, "
        f"{folder}/heatmap.html"
    )


def token_responses(
    tokens: torch.Tensor,
    mask: torch.Tensor,
    scores: TokenScores,
    tokenizer: Any,
    *,
    prompts: list[str],
    correct: list[bool] | None = None,
    label: str = "",
) -> list[Response]:
    """Scored sequences as responses of a report."""
    reference = scores.reference_logprobs.mean(0)
    responses = []
    for row, prompt in enumerate(prompts):
        scored = scores.mask[row]
        responses.append(
            Response(
                tokens=[decode_tokens(tokenizer, [token]) for token in tokens[row][mask[row]].tolist()],
                reward=scores.reward[row][scored].tolist(),
                policy_logprob=scores.policy_logprob[row][scored].tolist(),
                reference_logprob=reference[row][scored].tolist(),
                prompt=prompt,
                correct=None if correct is None else correct[row],
                label=label,
            )
        )
    return responses


def right_and_wrong(
    answers: EvaluatedAnswers, scores: TokenScores, prompt_texts: Sequence[str], tokenizer: Any
) -> list[Pair]:
    """A right and a wrong answer to one prompt, for the first prompts that have both, coloured by r̂.

    Args:
        answers: samples of π_SFT that a verifier judged.
        scores: of their tokens.
        prompt_texts: by index of the prompt.
        tokenizer: decodes the tokens.
    """
    assert answers.scores is not None
    log_ratio = scores.policy_logprob - scores.reference_logprobs.mean(0)
    by_prompt: dict[int, dict[bool, int]] = {}
    for row, (prompt, score) in enumerate(zip(answers.rollouts.prompt.tolist(), answers.scores, strict=True)):
        by_prompt.setdefault(prompt, {}).setdefault(score == 1.0, row)
    both = [(prompt, rows) for prompt, rows in by_prompt.items() if len(rows) == 2][:MOST_PAIRS]
    pairs: list[Pair] = []
    for prompt, rows in both:
        pair_rows = torch.tensor([rows[True], rows[False]])
        right, wrong = token_responses(
            answers.rollouts.tokens[pair_rows],
            answers.rollouts.mask[pair_rows],
            TokenScores(
                scores.policy_logprob[pair_rows],
                scores.reference_logprobs[:, pair_rows],
                scores.divergence[pair_rows],
                log_ratio[pair_rows],
                scores.mask[pair_rows],
            ),
            tokenizer,
            prompts=[prompt_texts[prompt]] * 2,
            correct=[True, False],
            label="sample of π_SFT",
        )
        pairs.append(Pair(prompt_texts[prompt], right, wrong))
    return pairs
