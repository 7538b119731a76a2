"""The numbers of a comparison as the Markdown tables of docs/results.md.

python benchmarks/compare_table.py runs/compare/toy/compare.json

With folders of its seeds (``seed_N.json``), also DPR against every other arm:

python benchmarks/compare_table.py runs/compare/toy/compare.json docs/measurements/addition
"""

import json
import sys
from pathlib import Path
from typing import Any

from dpr_lightning.evaluation.comparisons import MEASURES
from dpr_lightning.experiments.experiment import pooled

OURS = "dpr"
OPPOSITE = {"better": "worse", "worse": "better"}


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def difference(pair: dict[str, Any] | None) -> str:
    """Difference and interval; bold where the verdict is better or worse."""
    if pair is None:
        return "–"
    centre, low, high = (f"{round(pair[key], 3) + 0.0:+.3f}" for key in ("difference", "low", "high"))
    text = f"{centre} [{low}, {high}]"
    return text if pair["verdict"] == "no detectable difference" else f"**{text}**"


def against(arm: str, folders: list[str]) -> None:
    """Print the difference of one arm from each other arm, pooled over the seeds in ``folders``."""
    files = sorted(file for folder in folders for file in Path(folder).glob("seed_*.json"))
    seeds = [json.loads(file.read_text(encoding="utf-8"))["results"] for file in files]
    result = pooled({name: [results[name] for results in seeds] for name in seeds[0]}, arm)
    print(f"\n| {arm} − | {' | '.join(MEASURES)} |\n|---|---|---|")
    ranked = sorted(result.items(), key=lambda item: item[1]["sampled"]["difference"])
    for name, paired in ranked:
        cells = []
        for measure in MEASURES:
            pair = paired.get(measure)
            if pair is not None:  # of our arm minus the other
                verdict = OPPOSITE.get(pair["verdict"], pair["verdict"])
                pair = {
                    "difference": -pair["difference"],
                    "low": -pair["high"],
                    "high": -pair["low"],
                    "verdict": verdict,
                }
            cells.append(difference(pair))
        print(f"| {name.removesuffix(f' - {arm}')} | {' | '.join(cells)} |")


def main(path: str, *folders: str) -> None:
    """Print the arms against SFT, the preview's predicted gains with the measured ones, and DPR against each arm."""
    comparison = json.loads(Path(path).read_text(encoding="utf-8"))
    print(
        "| arm | greedy | sampled | sampled − SFT | greedy − SFT | length | reverse KL |\n|---|---|---|---|---|---|---|"
    )
    ranked = sorted(comparison["arms"].items(), key=lambda item: -item[1]["sampled"])
    for name, arm in ranked:
        paired = comparison["paired"].get(f"{name} - sft", {})
        cells = [number(arm["greedy"]), number(arm["sampled"]), difference(paired.get("sampled")),
                 difference(paired.get("greedy")), number(arm["length"], 1), number(arm["reverse_kl"])]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")
    flops = [arm["teraflops"] for arm in comparison["arms"].values() if arm["teraflops"]]
    print(f"\nTraining after SFT: {min(flops):.2f} to {max(flops):.2f} TFLOPs an arm; seeds {comparison['seeds']}.\n")
    print("| arm | promised gain | reached gain | reliable |\n|---|---|---|---|")
    for name, runs in comparison["preview"]["runs"].items():
        promised, reached = (sum(run[key] for run in runs) / len(runs) for key in ("promised", "reached"))
        print(f"| {name} | {promised:+.3f} | {reached:+.3f} | {sum(run['reliable'] for run in runs)} of {len(runs)} |")
    print({key: value for key, value in comparison["preview"].items() if key != "runs"})
    if folders:
        against(OURS, list(folders))


if __name__ == "__main__":
    main(*sys.argv[1:])
