"""Scores that each reward leads to, over seeds, as a Markdown table of docs/results.md.

python benchmarks/reward_table.py "runs/*/best_of.json" "runs/*/preview.json"

The first files are of `dpr best_of`, the second of `dpr preview` on the same SFT runs. Means over the files, with the
95% t-interval over them for the best of all samples. A ? marks an optimum that some run's samples do not reach.
"""

import json
import sys
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

# Names of `dpr preview` that differ from those of `dpr best_of`.
NAMES = {"log_policy": "log π_SFT (sharpening)"}


def read(pattern: str) -> list[dict[str, Any]]:
    """The files of a pattern, in order."""
    return [json.loads(Path(path).read_text(encoding="utf-8")) for path in sorted(glob(pattern))]


def interval(values: list[float]) -> str:
    """Mean and its 95% t-interval; of one value, itself."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    mean, error = np.mean(values), stats.sem(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return f"{mean:.3f} [{mean - reach:.3f}, {mean + reach:.3f}]"


def main(best_of: str, previews: str) -> None:
    """Print the table: AUC, the optimum at each β, and the best of 2, 8 and all samples."""
    picked, foreseen = read(best_of), read(previews)
    counts = [count for count in picked[0]["rankings"][0]["best_of"] if int(count) in (2, 8)]
    most = str(picked[0]["samples"])
    one = [run["rankings"][0]["best_of"]["1"]["mean"] for run in picked]
    betas = sorted({point["beta"] for reward in foreseen[0]["rewards"] for point in reward["points"]}, reverse=True)
    print(f"{len(picked)} seeds, {picked[0]['prompts']} prompts × {most} samples. One sample: {interval(one)}.\n")
    heads = ["reward", "AUC", *(f"β = {beta:g}" for beta in betas), *(f"best of {count}" for count in counts)]
    print(f"| {' | '.join([*heads, f'best of {most}'])} |\n|{'---|' * (len(heads) + 1)}")
    names = dict.fromkeys(ranking["name"] for run in picked for ranking in run["rankings"])
    for name in names:
        same = [ranking for run in picked for ranking in run["rankings"] if ranking["name"] == name]
        points = [
            {
                point["beta"]: point
                for reward in run["rewards"]
                if reward["name"] == NAMES.get(name, name)
                for point in reward["points"]
            }
            for run in foreseen
        ]
        optima = [
            f"{np.mean([run[beta]['score'] for run in points]):.3f}"
            + ("" if all(run[beta]["reliable"] for run in points) else "?")
            if points and all(points)
            else "–"
            for beta in betas
        ]
        known = [run["auc"] for run in same if run["auc"] is not None]
        aucs = f"{np.mean(known):.3f}" if known else "–"
        curve = [f"{np.mean([run['best_of'][count]['mean'] for run in same]):.3f}" for count in counts]
        label = name if len(same) == len(picked) else f"{name} ({len(same)} of the seeds)"
        cells = [label, aucs, *optima, *curve, interval([run["best_of"][most]["mean"] for run in same])]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
