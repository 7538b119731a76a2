"""Results of a comparison: differences pooled over seeds, and whether the preview predicted them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpr_lightning.cli.compare_preview import Promise, agreement
from dpr_lightning.evaluation.comparisons import compare_arms, to_records

BASE = "sft"
Results = Mapping[str, list[dict[str, Any]]]


def pooled(results: Results, base: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Every arm against ``base`` over the seeds, as :func:`compare_arms` judges it; plain data.

    Args:
        results: of each arm, one entry a seed with scores ``by_prompt`` of each measure.
        base: the arm that the others are compared with.
    """
    return to_records(compare_arms({name: [run["by_prompt"] for run in runs] for name, runs in results.items()}, base))


def predicted(results: Results, promised: Sequence[Mapping[str, Promise]]) -> dict[str, Any]:
    """What the preview promised every arm that trains on a dense reward, and what sampled answers gained.

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
        name: agreement([run["promised"] for run in chosen], [run["reached"] for run in chosen])
        for name, chosen in (("all", every), ("reliable", sure))
    }


def foresight(preview: Mapping[str, Any]) -> str:
    """How well the preview foretold what training reached."""
    parts = [
        f"{found['rank_correlation']:+.2f} over {found['runs']} runs {which}, {found['same_sign']:.0%} of the same sign"
        for which, found in (("in all", preview["all"]), ("whose optimum its samples reach", preview["reliable"]))
        if found["rank_correlation"] is not None
    ]
    if not parts:
        return "Too few runs on a dense reward to say whether the preview foretells what training reaches."
    return f"Rank correlation of the gain that the preview promised with the gain reached: {'; '.join(parts)}."
