"""Metrics of a run, read from the CSV file of its logger."""

import csv
from pathlib import Path

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
