"""Writes the scoreboard's tables into docs/performance.md: `python -m benchmarks.scoreboard.report`."""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.scoreboard.workloads import CPU, GPU, Workload

BEGIN, END = "<!-- scoreboard: written by benchmarks/scoreboard/report.py -->", "<!-- end of scoreboard -->"
NAMES = {
    "ours": "dpr_lightning",
    "ours_plain": "the same without its kernels",
    "ours_recomputing": "the same with `gradient_checkpointing`",
    "ours_graphs": "the same with CUDA graphs (`DPR_GRAPHS=1`)",
    "trl": "TRL 1.16, as it comes",
    "trl_tuned": "TRL 1.16, tuned",
    "transformers": "transformers",
    "static": "transformers, static cache",
}


def table(found: dict[str, Any]) -> str:
    """One workload."""
    work = Workload(**found["work"])
    saved = {side: turns[found["warmups"] :] for side, turns in found["turns"].items()}
    rate = max(found["gemm_rates"])
    floor = found["operations"] / rate
    lines = [
        f"### {work.title}",
        "",
        f"{work.rows} sequences of {work.prompt} + {work.completion} tokens"
        + (f", {work.samples} of a prompt" if work.samples > 1 else "")
        + f", {work.shape}; commit {found['commit']}, {found['date']}; {found['machine']}; "
        f"{len(saved['ours'])} rounds after {found['warmups']}, "
        f"{work.dtype} products at {rate / 1e9:,.0f} GFLOP/s. "
        f"Floor: {found['tokens'] / floor:,.0f} tokens/s.",
        "",
        "| side | tokens/s | of the floor | CPU s a step | peak MB | time against ours, spread |"
        + (" loss off by, cosine of the gradient |" if "gate" in found else ""),
        "|---|---|---|---|---|---|" + ("---|" if "gate" in found else ""),
    ]
    for side, turns in saved.items():
        tokens = [_tokens(work, turn, found) for turn in turns]
        speed = [count / turn["wall"] for count, turn in zip(tokens, turns, strict=True)]
        against = [
            turn["wall"] / other["wall"] * _tokens(work, other, found) / count
            for turn, other, count in zip(turns, saved["ours"], tokens, strict=True)
        ]
        ratio = f"{median(against):.2f} ({min(against):.2f}–{max(against):.2f})"
        cells = [
            NAMES[side],
            f"{median(speed):,.0f}",
            f"{median(speed) * floor / found['tokens']:.0%}",
            f"{median(turn['cpu'] for turn in turns):.2f}",
            f"{turns[-1]['peak'] / 1e6:,.0f}",
            "1" if side == "ours" else ratio,
        ]
        if "gate" in found:
            gate = found["gate"][side]
            cells.append(f"{gate['loss_distance']:.0e}, {gate['gradient_cosine']:.5f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _tokens(work: Workload, turn: dict[str, Any], found: dict[str, Any]) -> float:
    """Of a DPR step those that were really written: a random policy ends an answer early now and then."""
    return float(turn["acted"]) if work.kind == "dpr" else float(found["tokens"])


def main() -> None:
    """Replace what lies between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/scoreboard/results.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    given = parser.parse_args()
    results = json.loads(given.results.read_text())
    keys = [*CPU, *(f"gpu_{kind}" for kind in GPU)]
    written = "\n".join(table(results[key]) for key in keys if key in results)
    page = given.page.read_text()
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{given.page} has no place for the tables: {BEGIN} … {END}")
    given.page.write_text(f"{before}{BEGIN}\n\n{written}\n{END}{after}")


if __name__ == "__main__":
    main()
