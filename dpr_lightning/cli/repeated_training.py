"""Trainings that `dpr audit` repeats by the recipe of a run, on some of its rows or on a changed copy of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpr_lightning.data import Rows, TokenizedDataset
from dpr_lightning.data.held_out import rows_of
from dpr_lightning.data.prompt_identity import prompt_folds
from dpr_lightning.errors import InputError, counted
from dpr_lightning.experiments.fold_policies import FOLDS_RECORD
from dpr_lightning.experiments.json_cache import key_of
from dpr_lightning.experiments.run_folder import train_once
from dpr_lightning.folders import whole_file
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console
from dpr_lightning.rewards.cache import policy_hash
from dpr_lightning.rewards.suspicion import CheckpointScores, checkpoint_scores
from dpr_lightning.run_manifest import RunManifest
from dpr_lightning.workflow import write_config
from dpr_lightning.workflow.repeated_sft import repeated_sft

FOLDS = ".folds"
"""Suffix of the folder of the folds' trainings, beside the file of the audit."""


@dataclass(frozen=True)
class Folds:
    """How a run's SFT is cross-fitted.

    Attributes:
        manifest: of the run.
        count: of the folds.
        share: of the run's steps that each training takes.
        seed: of the choice of prompts.
        folder: of the trainings' folders.

    Raises:
        InputError: the share is outside (0, 1].
    """

    manifest: RunManifest
    count: int
    share: float
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.share <= 1:
            raise InputError(
                f"`fold_share` is {self.share:g}. It is the share of the run's steps that each fold takes: above 0, "
                "and 1 at most."
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of one training."""
        return max(1, round(self.share * self.manifest.sft_steps))

    @property
    def cost(self) -> float:
        """Steps of all trainings together, as a multiple of the run's SFT."""
        return self.count * self.steps / self.manifest.sft_steps

    def describe(self) -> str:
        """What the trainings cost, and where they are, in two sentences."""
        sft_steps = counted(self.manifest.sft_steps, "step")
        return (
            f"{self.count} folds of {counted(self.steps, 'step')} each: {self.cost:.2g} times the {sft_steps} of SFT. "
            f"A fold that has ended is not trained again; they are in {self.folder}."
        )


def train_on(
    rows: Sequence[Mapping[str, Any]],
    manifest: RunManifest,
    folder: Path,
    *,
    steps: int,
    references: Sequence[float] = (),
) -> Path:
    """Train by the recipe of a run's SFT on these rows, unless that has been done; returns the folder of the policies.

    Args:
        rows: their columns.
        manifest: of the run.
        folder: of the training; its rows and its config are beside it.
        steps: of the optimizer.
        references: shares of the training at which the policy is saved too.

    Raises:
        InputError: the recipe cannot be repeated.
    """
    path, config = (folder.parent / f"{folder.name}{suffix}" for suffix in (".jsonl", ".yaml"))
    recipe = repeated_sft(manifest, path, folder, steps=steps, references=references)
    text = "".join(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n" for row in rows)
    with whole_file(path) as stream:
        stream.write(text)
    write_config(recipe, config, f"Written by `dpr audit`, from {manifest.sft_config}")
    source = str(manifest.policy_options.get("source"))
    content = policy_hash(source) if Path(source).is_dir() else source
    train_once(config, folder, key_of(config.read_text(encoding="utf-8"), text, content))
    return folder / "policies"


def fold_scores(
    source: Rows, data: TokenizedDataset, pad: int, folds: Folds, dtype: Dtype, *, entropy: bool
) -> CheckpointScores:
    """Score each demonstration by a policy that learnt from the other folds.

    Args:
        source: rows of the demonstrations.
        data: the same, as tokens.
        pad: token id of the padding.
        folds: how they are divided, and trained.
        dtype: of the models' parameters.
        entropy: whether that of each state is computed too.

    Raises:
        InputError: there are fewer than two folds, or more than prompts; or the recipe cannot be repeated.
    """
    fold = prompt_folds(data.prompt_hashes, folds.count, folds.seed, data.file)
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, pad)
    rows = [row.values for row in rows_of(source, data)]
    console.print(folds.describe(), highlight=False, markup=False, soft_wrap=True)
    result = CheckpointScores(*torch.zeros(2 + entropy, len(data), int(mask.sum(1).amax())))
    for number in range(folds.count):
        learnt, scored = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        name = f"fold_{number + 1}"
        console.print(
            f"Fold {number + 1} of {folds.count}: {counted(len(learnt), 'row')} to learn from, "
            f"{len(scored):,} to score, {counted(folds.steps, 'step')}",
            style="bold",
            highlight=False,
        )
        policies = train_on([rows[index] for index in learnt], folds.manifest, folds.folder / name, steps=folds.steps)
        model = frozen_policy(str(policies / "final"), dtype)[0]
        index = torch.from_numpy(scored)
        with progress_bar("demonstrations scored", len(scored)) as advance:
            part = checkpoint_scores(model, tokens[index], mask[index], entropy=entropy, progress=advance)
        for whole, values in zip(result, part, strict=True):
            if whole is None or values is None:
                continue
            whole[index, : values.shape[1]] = values
    with whole_file(folds.folder / FOLDS_RECORD) as stream:
        json.dump({"folds": folds.count, "steps": folds.steps, "seed": folds.seed}, stream)
        stream.write("\n")
    return result
