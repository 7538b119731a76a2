"""Curves of a run, read back from the CSV files that its logger wrote."""

import csv
from pathlib import Path

from dpr_lightning.reports import Panel, Series

Curves = dict[str, list[tuple[float, float]]]

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
    ("Reward per token: samples and held-out demonstrations", "nats per token",
     ("rollout/reward_per_token", "held_out/reward_per_token")),
    ("Likelihood of held-out demonstrations", "nats per token", ("held_out/nll",)),
    ("Gradient norm", "", ("train/gradient_norm",)),
)  # fmt: skip


def read_curves(path: str | Path) -> Curves:
    """Every column of a metrics.csv as (step, value) pairs; nothing when there is no such file."""
    path = Path(path)
    curves: Curves = {}
    if not path.is_file():
        return curves
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            step = float(row.get("step") or 0)
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    curves.setdefault(name, []).append((step, float(value)))
    return curves


def panels(path: str | Path, wanted: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[Panel]:
    """The panels for which a run has data."""
    curves = read_curves(path)
    drawn = []
    for title, unit, names in wanted:
        series = [
            Series(name, [step for step, _ in curves[name]], [value for _, value in curves[name]])
            for name in names
            if name in curves
        ]
        if series:
            drawn.append(Panel(title, series, unit))
    return drawn
