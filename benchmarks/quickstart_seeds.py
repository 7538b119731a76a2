"""The quickstart over several seeds, as the tables of docs/results.md.

for seed in 1 2 3 4 5; do dpr quickstart --seed $seed --output runs/seed_$seed; done
python benchmarks/quickstart_seeds.py runs/seed_*
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from scipy import stats

ARMS = ("sft", "reference", "continued_sft", "sft_low_temperature", "contrast", "dpr")


def arms_row(arm: str, runs: list[dict[str, Any]]) -> str:
    """Greedy and sampled score of each seed, then the means of all four figures."""
    values = [run["arms"][arm] for run in runs]
    cells = [f"{value['greedy']:.3f} / {value['sampled']:.3f}" for value in values]
    means = [
        f"{statistics.fmean(value[name] for value in values):.{digits}f}"
        for name, digits in (("greedy", 3), ("sampled", 3), ("length", 1), ("reverse_kl", 3))
    ]
    return f"| {arm} | {' | '.join([*cells, *means])} |"


def paired_row(pair: str, measure: str, runs: list[dict[str, Any]]) -> str:
    """The paired difference of each seed with its 95% interval; bold where the verdict is better or worse."""
    cells = []
    for run in runs:
        result = run["paired"][pair][measure]
        text = f"{result['difference']:+.3f} [{result['low']:+.3f}, {result['high']:+.3f}]"
        cells.append(text if result["verdict"] == "no detectable difference" else f"**{text}**")
    differences = [run["paired"][pair][measure]["difference"] for run in runs]
    mean, error = statistics.fmean(differences), stats.sem(differences)
    low, high = stats.t.interval(0.95, len(runs) - 1, mean, error) if error > 0 else (mean, mean)
    return f"| {pair}, {measure} | {' | '.join(cells)} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] |"


def main(folders: list[str]) -> None:
    """Print both tables in Markdown."""
    runs = [json.loads((Path(folder) / "metrics.json").read_text()) for folder in folders]
    seeds = [f"seed {run['seed']}" for run in runs]
    print(f"| greedy / sampled | {' | '.join(seeds)} | greedy | sampled | length | reverse KL |")
    print("|---" * (len(runs) + 5) + "|")
    for arm in ARMS:
        print(arms_row(arm, runs))
    print(f"\n| paired difference | {' | '.join(seeds)} | mean, 95% t-interval over seeds |")
    print("|---" * (len(runs) + 2) + "|")
    for other in ("sft", "continued_sft", "sft_low_temperature", "contrast"):
        for measure in ("sampled", "greedy"):
            print(paired_row(f"dpr - {other}", measure, runs))
    print(f"\nSeconds: {', '.join(str(run['seconds']) for run in runs)}")


if __name__ == "__main__":
    main(sys.argv[1:])
