"""Curves of a run, read from the CSV files of its logger."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpr_lightning.reports import Panel, Series
from dpr_lightning.reports.metrics_table import Curves, read_curves

SFT_PANELS = (
    ("Negative log-likelihood", "nats per token", ("train/nll", "validation/nll")),
    ("Token accuracy", "", ("validation/token_accuracy",)),
    ("Answers that a verifier calls right", "", ("evaluation/greedy", "evaluation/sampled_T1")),
    ("Gradient norm", "", ("train/gradient_norm",)),
)
DPR_PANELS = (
    ("Reward of samples", "nats per response", ("rollout/reward",)),
    ("Verifier score of samples", "", ("rollout/verifier",)),
    ("Reverse KL to π_SFT", "nats per response", ("rollout/reverse_kl",)),
    ("Length", "tokens", ("rollout/length",)),
    ("Entropy", "nats per token", ("train/entropy",)),
    ("Reward per token", "nats per token",
     ("rollout/reward_per_token", "held_out/reward_per_token")),
    ("NLL of held-out demonstrations", "nats per token", ("held_out/nll",)),
    ("Gradient norm", "", ("train/gradient_norm",)),
)  # fmt: skip


def panels(path: str | Path, layout: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[Panel]:
    """The panels of ``layout`` for which a run has data."""
    curves = read_curves(path)
    result = []
    for title, unit, names in layout:
        series = [
            Series(name, [step for step, _ in curves[name]], [value for _, value in curves[name]])
            for name in names
            if name in curves
        ]
        if series:
            result.append(Panel(title, series, unit))
    return result


def over_optimisation(runs: Mapping[str, Curves], blocks: int = 10) -> list[Panel]:
    """Reward and true score over √KL(π‖π_SFT) along a run: where one rises and the other falls, the reward is gamed.

    The measure of Gao, Schulman and Hilton (arXiv:2210.10760). Both are of the rollouts of the training.

    Args:
        runs: by name.
        blocks: points of a curve: means over as many stretches of the run.
    """
    result = []
    for title, unit, column in (
        ("True score", "verifier", "rollout/verifier"),
        ("Reward", "nats per response", "rollout/reward"),
    ):
        series = []
        for name, curves in runs.items():
            drift, value = dict(curves.get("rollout/reverse_kl", [])), dict(curves.get(column, []))
            steps = sorted(drift.keys() & value.keys())
            parts = [part for part in np.array_split(np.array(steps), min(blocks, len(steps)) or 1) if len(part)]
            points = sorted(
                (
                    math.sqrt(max(0.0, float(np.mean([drift[step] for step in part])))),
                    float(np.mean([value[step] for step in part])),
                )
                for part in parts
            )
            if points:
                series.append(Series(name, [x for x, _ in points], [y for _, y in points]))
        if series:
            result.append(Panel(title, series, unit, over="√KL"))
    return result
