"""What a comparison found: paired and pooled differences, verdicts in words, and whether the preview foretold it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpr_lightning.cli.compare_preview import Promise, agreement
from dpr_lightning.evaluation.statistics import hierarchical_comparison, holm, paired_comparison, verdict
from dpr_lightning.reports import arm_name, number

BASE = "sft"
MEASURES = ("sampled", "greedy")
Results = Mapping[str, list[dict[str, Any]]]


def pooled(results: Results, base: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Every arm against ``base``, paired by prompt; with several seeds these are a second level of chance.

    Args:
        results: of each arm, one entry a seed with scores ``by_prompt`` of each measure.
        base: the arm that the others are compared with.

    Returns:
        ``{"arm - base": {measure: {difference, low, high, p_value, p_holm, verdict}}}``; p_holm is Holm's, over arms.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {f"{name} - {base}": {} for name in results if name != base}
    for measure in MEASURES:
        others = [name for name in results if name != base and measure in results[name][0]["by_prompt"]]
        found = []
        for name in others:
            pairs = [
                (ours["by_prompt"][measure], theirs["by_prompt"][measure])
                for ours, theirs in zip(results[name], results[base], strict=True)
            ]
            found.append(hierarchical_comparison(pairs) if len(pairs) > 1 else paired_comparison(*pairs[0]))
        adjusted = holm([compared.p_value for compared in found])
        for name, compared, p_holm in zip(others, found, adjusted, strict=True):
            table[f"{name} - {base}"][measure] = {
                **dataclasses.asdict(compared),
                "p_holm": float(p_holm),
                "verdict": verdict(dataclasses.replace(compared, p_value=float(p_holm))),
            }
    return table


def foretold(results: Results, promised: Sequence[Mapping[str, Promise]]) -> dict[str, Any]:
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


def verdict_lines(paired: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Which arms are better than π_SFT, which worse, and which cannot be told from it, largest difference first."""
    lines = []
    for measure in MEASURES:
        found = {pair.split(" - ")[0]: entry[measure] for pair, entry in paired.items() if measure in entry}
        ranked = sorted(found, key=lambda name: -float(found[name]["difference"]))
        for judgement, words in (
            ("better", "better than SFT"),
            ("no detectable difference", "no detectable difference"),
            ("worse", "worse than SFT"),
        ):
            names = [
                f"{arm_name(name)} ({number(found[name]['difference'], 3, signed=True)})"
                for name in ranked
                if found[name]["verdict"] == judgement
            ]
            if names:
                lines.append(f"{measure.capitalize()} answers, {words}: {', '.join(names)}.")
    return lines


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
