"""How many of the first rows of several lists are planted mistakes, where a pretrained policy was fine-tuned.

python -m benchmarks.planted_gsm8k gsm8k/train.jsonl planted.jsonl
dpr sft --model BASE --train planted.jsonl --output runs/planted --lora 16 --epochs 2 --max_length 150
python -m benchmarks.pretrained_list runs/planted BASE planted.mistakes.jsonl
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpr_lightning.cli.suspicious_rows import load_demonstrations
from dpr_lightning.data import TokenizedDataset
from dpr_lightning.evaluation.list_precision import FIRST, list_precision, worst_order
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.rewards.suspicion import CheckpointScores, checkpoint_scores, suspicion
from dpr_lightning.run_manifest import RunManifest


def score(run: RunManifest, policies: Sequence[str]) -> tuple[TokenizedDataset, Tensor, list[CheckpointScores]]:
    """The rows that a run has learnt from, which tokens they act with, and their scores by policies."""
    tokenizer = load_tokenizer(run.sft)
    data = load_demonstrations(
        run.train,
        tokenizer,
        run.sft,
        columns=run.columns,
        limit=run.limit,
        exclude=run.held_out,
        max_length=run.max_length,
    )
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    return data, mask, [checkpoint_scores(frozen_policy(name)[0], tokens, mask, entropy=True) for name in policies]


def measure(run: RunManifest, base: str, mistakes: Path) -> None:
    """Print for each list how many of its first rows are mistakes."""
    data, mask, (before, early, *later) = score(run, [base, *run.references.values(), run.sft])
    kinds = {each["row"]: each["kind"] for each in map(json.loads, mistakes.read_text(encoding="utf-8").splitlines())}
    counts = mask.sum(1)
    lists = {
        "memorised": suspicion([each.margin for each in (early, *later)], mask).row,
        "memorised, normalised": suspicion([each.normalised_margin() for each in (early, *later)], mask).row,
        "NLL of the first reference": -early.logprob.sum(1) / counts,
        "NLL of the base model": -before.logprob.sum(1) / counts,
        "random": torch.rand(len(data), generator=torch.Generator().manual_seed(0)),
    }
    of_rows = [kinds.get(number) for number in data.numbers.tolist()]
    is_mistake = np.array([kind is not None for kind in of_rows])
    print(f"{len(data)} rows, {is_mistake.sum()} mistakes: {dict(Counter(filter(None, of_rows)))}")
    for name, scores in lists.items():
        order = worst_order(scores.double().numpy(), is_mistake)
        precision = list_precision(is_mistake[order].tolist())
        tops = ", ".join(f"{precision.hits(first)} of {first}" for first in FIRST)
        first = Counter(kind for index in order[:50] if (kind := of_rows[index]) is not None)
        print(f"{name}: {tops}; average precision {precision.average_precision:.2f}; first 50: {dict(first)}")


if __name__ == "__main__":
    measure(RunManifest.load(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
