"""The heat-map of the README: the token rewards of the first sampled answers of a toy policy, right and wrong.

dpr toy --output runs/toy
dpr fit --config configs/toy/sft.yaml
dpr generate --policy runs/toy/sft/policies/final --prompts runs/toy/data/test.jsonl --max_new_tokens 96 --limit 100 \
    --temperature 1 --output runs/toy/answers.jsonl
dpr rewards --sft runs/toy/sft/policies/final --references "[runs/toy/sft/policies/step_0000100]" \
    --responses runs/toy/answers.jsonl --reward.form "{one_sided_centred: 1, log_policy: 0.5}" --output runs/toy/rewards
python -m benchmarks.heatmap_figure docs/figures/heatmap.svg runs/toy/rewards/rewards.parquet runs/toy/data/test.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow.parquet import read_table

from benchmarks.figure import INK, PAPER, SOFT, text
from dpr_lightning.evaluation.verifiers import answer
from dpr_lightning.reports import Response
from dpr_lightning.reports.heatmap import HeatMap, Token, heat_map

SHOWN = 6
FULL = 1.0
"""Nats at which the colour is full. Most tokens of a fitted policy are within 0.01 of 0."""
LEFT, WIDTH, ROW, TOP, CHARACTER = 132, 760, 34, 34, 10.4
LESS, MORE, TRUTH = "#d6322b", "#2f7ec2", "#1d1f23"
MONOSPACE = 'font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"'


class Scored(NamedTuple):
    """An answer with its colours, and the position of the first token that differs from the demonstration.

    ``first_wrong`` is None where the answer is right.
    """

    map: HeatMap
    first_wrong: int | None


def lowest(values: list[float]) -> int:
    """Position of the lowest value."""
    return min(range(len(values)), key=values.__getitem__)


def scored_answers(rewards: str, demonstrations: str) -> list[Scored]:
    """The answers of ``rewards.parquet``."""
    truth = [json.loads(line) for line in Path(demonstrations).read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = read_table(rewards).to_pylist()
    responses = [
        Response(
            tokens=row["tokens"],
            reward=row["reward"],
            policy_logprob=row["policy_logprob"],
            reference_logprob=row["reference_logprob"],
            prompt=row["prompt"],
            correct=answer(row["prompt"], "".join(row["tokens"]).removesuffix("<eos>"), expected) == 1,
        )
        for row, expected in zip(rows, truth, strict=False)
    ]
    maps = [heat_map(response, FULL) for response in responses]
    return [Scored(each, first_wrong(each, expected)) for each, expected in zip(maps, truth, strict=False)]


def first_wrong(each: HeatMap, expected: dict[str, Any]) -> int | None:
    """Position of the first token that differs from the demonstration; None for a right answer."""
    if each.correct:
        return None
    start = 0
    for position, token in enumerate(each.tokens):
        if not expected["completion"].startswith(token.raw, start):
            return position
        start += len(token.raw)
    return len(each.tokens) - 1


def cell(x: float, y: float, token: Token, wrong: bool) -> list[str]:
    """A token on its colour, underlined where it is the first wrong one."""
    width = CHARACTER * len(token.text)
    colour = LESS if token.sign == "less" else MORE
    parts = [
        f'<rect x="{x:.1f}" y="{y - 15:.1f}" width="{width:.1f}" height="21" fill="{colour}" '
        f'fill-opacity="{token.strength / 100:.2f}"><title>{token.reward:+.2f} nats</title></rect>'
    ]
    parts.append(text(x + width / 2, y, token.text, colour=INK if len(token.text) == 1 else SOFT))
    if wrong:
        parts.append(f'<rect x="{x:.1f}" y="{y + 8:.1f}" width="{width:.1f}" height="2.5" fill="{TRUTH}"/>')
    return parts


def answer_row(y: float, scored: Scored) -> list[str]:
    """The prompt, the tokens of the answer, and what the first wrong one got."""
    mark, colour = ("✓", MORE) if scored.map.correct else ("✗", LESS)
    prompt = scored.map.prompt.strip()
    parts = [text(16, y, mark, colour=colour, bold=True), text(LEFT - 16, y, prompt, anchor="end", colour=INK)]
    x: float = LEFT
    for position, token in enumerate(scored.map.tokens):
        parts += cell(x, y, token, position == scored.first_wrong)
        x += CHARACTER * len(token.text)
    if scored.first_wrong is not None:
        reward = f"{scored.map.tokens[scored.first_wrong].reward:.2f}".replace("-", "−")
        parts.append(text(WIDTH - 16, y, f"{reward} nats", anchor="end"))
    return parts


def main(target: str, rewards: str, demonstrations: str) -> None:
    """Draw and write the figure."""
    answers = scored_answers(rewards, demonstrations)
    wrong = [each for each in answers if each.first_wrong is not None]
    by_reward = sum(lowest([token.reward for token in each.map.tokens]) == each.first_wrong for each in wrong)
    control = sum(lowest([token.policy_logprob for token in each.map.tokens]) == each.first_wrong for each in wrong)
    caption = (
        f"The first {SHOWN} of {len(answers)} sampled answers. Red: a token's reward, full colour at −{FULL:g} nat.",
        "Underlined: the first token that is wrong. Right: its reward.",
        f"It is the lowest of the answer in {by_reward} of {len(wrong)} wrong ones (by log π_SFT alone: {control}).",
    )
    height = TOP + ROW * SHOWN + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'{MONOSPACE} font-size="15">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
    ]
    for index, scored in enumerate(answers[:SHOWN]):
        parts += answer_row(TOP + ROW * index, scored)
    parts.append('<g font-family="system-ui, sans-serif" font-size="12.5">')
    parts += [text(WIDTH / 2, height - 52 + 18 * index, words) for index, words in enumerate(caption)]
    Path(target).write_text("\n".join([*parts, "</g>", "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
