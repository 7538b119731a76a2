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
    "trl": "TRL 1.16, as it comes",
    "trl_tuned": "TRL 1.16, tuned",
    "transformers": "transformers",
    "static": "transformers, static cache",
}


def table(measured: dict[str, Any]) -> str:
    """One workload."""
    work = Workload(**measured["work"])
    saved = {side: turns[measured["warmups"] :] for side, turns in measured["turns"].items()}
    rate = max(measured["gemm_rates"])
    floor = measured["operations"] / rate
    lines = [
        f"### {work.title}",
        "",
        f"{work.rows} sequences of {work.prompt} + {work.completion} tokens"
        + (f", {work.samples} of a prompt" if work.samples > 1 else "")
        + f", {work.shape}; commit {measured['commit']}, {measured['date']}; {measured['machine']}; "
        f"{len(saved['ours'])} rounds after {measured['warmups']}, "
        f"{work.dtype} products at {rate / 1e9:,.0f} GFLOP/s. "
        f"Floor: {measured['tokens'] / floor:,.0f} tokens/s.",
        "",
        "| side | tokens/s | of the floor | CPU s a step | peak MB | time against ours, spread |"
        + (" loss off by, cosine of the gradient |" if "gate" in measured else ""),
        "|---|---|---|---|---|---|" + ("---|" if "gate" in measured else ""),
    ]
    for side, turns in saved.items():
        tokens = [_tokens(work, turn, measured) for turn in turns]
        speed = [count / turn["wall"] for count, turn in zip(tokens, turns, strict=True)]
        same_rounds = measured.get("against", {}).get(side, measured["turns"]["ours"])[measured["warmups"] :]
        against = [
            turn["wall"] / other["wall"] * _tokens(work, other, measured) / count
            for turn, other, count in zip(turns, same_rounds, tokens, strict=True)
        ]
        ratio = f"{median(against):.2f} ({min(against):.2f}–{max(against):.2f})"
        cells = [
            NAMES[side],
            f"{median(speed):,.0f}",
            f"{median(speed) * floor / measured['tokens']:.0%}",
            f"{median(turn['cpu'] for turn in turns):.2f}",
            f"{turns[-1]['peak'] / 1e6:,.0f}",
            "1" if side == "ours" else ratio,
        ]
        if "gate" in measured:
            gate = measured["gate"][side]
            cells.append(f"{gate['loss_distance']:.0e}, {gate['gradient_cosine']:.5f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _tokens(work: Workload, turn: dict[str, Any], measured: dict[str, Any]) -> float:
    """Tokens of a step; of a DPR step those decoded, because a random policy sometimes ends an answer early."""
    return float(turn["acted"]) if work.kind == "dpr" else float(measured["tokens"])


def main() -> None:
    """Replace the text between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/scoreboard/results.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    keys = [*CPU, *(f"gpu_{kind}" for kind in GPU)]
    tables = "\n".join(table(results[key]) for key in keys if key in results)
    page = arguments.page.read_text()
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{arguments.page} has no marks for the tables: {BEGIN} … {END}")
    arguments.page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


if __name__ == "__main__":
    main()
