"""The figure of the README: the gain of each arm over SFT, one column a task, from compare.json files.

python benchmarks/figure.py docs/figures/compare.svg "Two-digit addition=runs/a/compare.json" "SCAN=runs/b/compare.json"
"""

import json
import sys
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

ARMS = {
    "dpr": "DPR, recipe",
    "dpr_published": "DPR, as published",
    "dpr_log_policy": "DPR, log π_SFT alone",
    "continued_sft": "continued SFT",
    "sft_half_temperature": "SFT at T = ½",
    "contrast": "decode-time contrast",
    "dft": "DFT",
    "spin": "SPIN",
    "best_of_4": "best of 4 by the reward",
}
ROW, LEFT, WIDTH, GAP, TOP = 26, 190, 200, 40, 58
COLOURS = {"better": "#1a5c99", "worse": "#a14a00"}
INK, SOFT, PAPER = "#1d1f23", "#7a7f87", "#fdfdfb"
CAPTION = (
    "Sampled answers right, minus SFT's. 95% intervals over seeds and prompts.",
    "Coloured: better or worse after Holm's correction over all arms of the comparison.",
)


def text(x: float, y: float, words: str, *, anchor: str = "middle", colour: str = SOFT, bold: bool = False) -> str:
    """A line of text."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def column(start: float, name: str, comparison: dict[str, Any], reach: float) -> list[str]:
    """The arms of one task, on an axis from −reach to +reach."""
    middle, bottom = start + WIDTH / 2, TOP + ROW * len(ARMS) - 10

    def x_of(value: float) -> float:
        return middle + value / reach * WIDTH / 2

    seeds = f"SFT {comparison['arms']['sft']['sampled']:.2f}, {len(comparison['seeds'])} seeds"
    parts = [text(middle, 18, name, colour=INK, bold=True), text(middle, 35, seeds)]
    parts.append(line(middle, TOP - 12, middle, bottom, SOFT))
    mark = round(reach * 2 / 3, 2)
    for value in (-mark, 0.0, mark):
        parts.append(text(x_of(value), bottom + 18, f"{value:+.2f}".replace("-", "−") if value else "0"))
    for row, arm in enumerate(ARMS):
        pair = comparison["paired"].get(f"{arm} - sft", {}).get("sampled")
        if pair is not None:
            y, colour = TOP + ROW * row, COLOURS.get(pair["verdict"], SOFT)
            parts.append(line(x_of(pair["low"]), y, x_of(pair["high"]), y, colour, 2))
            parts.append(f'<circle cx="{x_of(pair["difference"]):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    return parts


def main(target: str, *tasks: str) -> None:
    """Draw and write the figure."""
    named = [task.partition("=") for task in tasks]
    read = [(name, json.loads(Path(path).read_text(encoding="utf-8"))) for name, _, path in named]
    pairs = [comparison["paired"].get(f"{arm} - sft", {}).get("sampled") for _, comparison in read for arm in ARMS]
    bounds = [abs(pair[end]) for pair in pairs if pair is not None for end in ("low", "high")]
    reach = max(1, ceil(max(bounds) * 20)) / 20
    width, height = LEFT + len(read) * (WIDTH + GAP), TOP + ROW * len(ARMS) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
    ]
    for row, words in enumerate(ARMS.values()):
        parts.append(text(LEFT - 14, TOP + ROW * row + 4, words, anchor="end", colour=INK))
    for index, (name, comparison) in enumerate(read):
        parts += column(LEFT + index * (WIDTH + GAP), name, comparison, reach)
    for index, words in enumerate(CAPTION):
        parts.append(text(width / 2, height - 24 + 17 * index, words))
    Path(target).write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
