"""Metrics of a run, read from the CSV file of its logger."""

import csv
from pathlib import Path

MEASURED = ("validation/", "evaluation/", "held_out/", "rollout/reward", "rollout/verifier")
"""Beginnings of the metrics whose first and last values are worth a sentence."""
DETAILS = ("length", "perplexity", "per_token")
"""Parts of names that are left out: they say the same again, or belong on the report's page."""
Curves = dict[str, list[tuple[float, float]]]
"""(step, value) pairs by metric."""


def read_curves(path: str | Path) -> Curves:
    """Every column of a metrics.csv as (step, value) pairs; empty when there is no such file."""
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


def first_to_last(curves: Curves) -> list[str]:
    """The first and last values of what a run measured: ``validation nll 2.1 → 0.4``; for messages."""
    return [
        f"{name.replace('/', ' ').replace('_', ' ')} {points[0][1]:.4g} → {points[-1][1]:.4g}"
        for name, points in sorted(curves.items())
        if name.startswith(MEASURED) and not any(detail in name for detail in DETAILS) and len(points) > 1
    ]
