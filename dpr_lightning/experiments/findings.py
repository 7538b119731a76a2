"""Results of a comparison: differences pooled over seeds, and whether the preview predicted them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpr_lightning.evaluation.comparisons import compare_arms, to_records
from dpr_lightning.experiments.predictions import Promise, agreement

BASE = "sft"
Results = Mapping[str, list[dict[str, Any]]]


def pooled(results: Results, base: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare every arm with ``base`` over the seeds by :func:`compare_arms`; plain data.

    Args:
        results: of each arm, one entry a seed with scores ``by_prompt`` of each measure.
        base: the arm that all other arms are compared with.
    """
    return to_records(compare_arms({name: [run["by_prompt"] for run in runs] for name, runs in results.items()}, base))


def predicted(results: Results, promised: Sequence[Mapping[str, Promise]]) -> dict[str, Any]:
    """The gain that the preview promised each arm with a dense reward, and the gain of its sampled answers.

    Returns:
        ``runs``: by arm, a list over seeds of ``{"promised", "reached", "reliable"}``, gains over π_SFT; and
        ``all``, ``reliable``: :func:`agreement` over all runs, and over those whose optimum samples can reach.
    """
    runs = {
        name: [
            {
                "promised": of_seed[name].optimum - of_seed[name].sft,
                "reached": float(np.mean(ours["by_prompt"]["sampled"]) - np.mean(theirs["by_prompt"]["sampled"])),
                "reliable": of_seed[name].reliable,
            }
            for of_seed, ours, theirs in zip(promised, results[name], results[BASE], strict=True)
        ]
        for name in (promised[0] if promised else {})
    }
    every = [run for of_arm in runs.values() for run in of_arm]
    sure = [run for run in every if run["reliable"]]
    return {"runs": runs} | {
        name: agreement([run["promised"] for run in selected], [run["reached"] for run in selected])
        for name, selected in (("all", every), ("reliable", sure))
    }


def foresight(preview: Mapping[str, Any]) -> str:
    """A sentence on how well the preview predicted what training reached."""
    parts = [
        f"{part['rank_correlation']:+.2f} over {part['runs']} runs {which}, {part['same_sign']:.0%} of the same sign"
        for which, part in (("in all", preview["all"]), ("whose optimum its samples reach", preview["reliable"]))
        if part["rank_correlation"] is not None
    ]
    if not parts:
        return "Too few runs on a dense reward to say whether the preview predicts what training reaches."
    return f"Rank correlation of the gain that the preview promised with the gain reached: {'; '.join(parts)}."
