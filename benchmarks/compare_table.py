"""The numbers of a comparison as the Markdown tables of docs/results.md.

python benchmarks/compare_table.py runs/compare/toy/compare.json
"""

import json
import sys
from pathlib import Path
from typing import Any


def shown(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def difference(found: dict[str, Any] | None) -> str:
    """Difference and interval; bold where the verdict is better or worse."""
    if found is None:
        return "–"
    text = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    return text if found["verdict"] == "no detectable difference" else f"**{text}**"


def main(path: str) -> None:
    """Print both tables: the arms against SFT, and the preview's promises beside what was reached."""
    held = json.loads(Path(path).read_text(encoding="utf-8"))
    print(
        "| arm | greedy | sampled | sampled − SFT | greedy − SFT | length | reverse KL |\n|---|---|---|---|---|---|---|"
    )
    ranked = sorted(held["arms"].items(), key=lambda item: -item[1]["sampled"])
    for name, arm in ranked:
        paired = held["paired"].get(f"{name} - sft", {})
        cells = [shown(arm["greedy"]), shown(arm["sampled"]), difference(paired.get("sampled")),
                 difference(paired.get("greedy")), shown(arm["length"], 1), shown(arm["reverse_kl"])]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")
    flops = [arm["teraflops"] for arm in held["arms"].values() if arm["teraflops"]]
    print(f"\nTraining after SFT: {min(flops):.2f} to {max(flops):.2f} TFLOPs an arm; seeds {held['seeds']}.\n")
    print("| arm | promised gain | reached gain | reliable |\n|---|---|---|---|")
    for name, runs in held["preview"]["runs"].items():
        promised, reached = (sum(run[key] for run in runs) / len(runs) for key in ("promised", "reached"))
        print(f"| {name} | {promised:+.3f} | {reached:+.3f} | {sum(run['reliable'] for run in runs)} of {len(runs)} |")
    print({key: value for key, value in held["preview"].items() if key != "runs"})


if __name__ == "__main__":
    main(sys.argv[1])
