"""Policies of cross-fitting: each learnt from all demonstrations but those of some prompts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dpr_lightning.data import open_rows, to_demonstration
from dpr_lightning.data.prompt_identity import prompt_hash
from dpr_lightning.run_manifest import FINAL

FOLDS_RECORD = "folds.json"
"""File in a folder of folds that has their number."""


class Fold(NamedTuple):
    """A policy of cross-fitting: its folder, and the hashes of the prompts that it learnt from."""

    policy: Path
    learnt: frozenset[int]


def fold_policies(folder: Path, columns: Mapping[str, str] | None) -> list[Fold]:
    """The policies that `dpr audit --folds` has trained in a folder; none where they are not all there.

    Args:
        folder: of the folds.
        columns: names of columns in the demonstrations.
    """
    record = folder / FOLDS_RECORD
    count = json.loads(record.read_text(encoding="utf-8"))["folds"] if record.is_file() else 0
    names = [folder / f"fold_{number + 1}" for number in range(count)]
    if not all((name / "policies" / FINAL).is_dir() for name in names):
        return []
    return [
        Fold(
            name / "policies" / FINAL,
            frozenset(
                prompt_hash(to_demonstration(row, columns).prompt_text)
                for row in open_rows(name.with_name(f"{name.name}.jsonl"))
            ),
        )
        for name in names
    ]


def assign_folds(folds: Sequence[Fold], hashes: Sequence[int]) -> dict[str, list[int]]:
    """For each policy the indices of prompts that it answers: those that it did not learn from, each prompt once.

    Args:
        folds: the policies.
        hashes: of the prompts.

    Returns:
        by the policy's folder; prompts that all policies learnt from are left out.
    """
    result: dict[str, list[int]] = {str(fold.policy): [] for fold in folds}
    for index, value in enumerate(hashes):
        policy = next((fold.policy for fold in folds if value not in fold.learnt), None)
        if policy is not None:
            result[str(policy)].append(index)
    return result
