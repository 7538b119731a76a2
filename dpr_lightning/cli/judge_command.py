"""``dpr judge``: which of two policies answers better, judged by another model."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from dpr_lightning.data import Rows, open_rows
from dpr_lightning.errors import counted
from dpr_lightning.evaluation.judge import JudgeReport, answers_of, match_answers, parse_verdict, summarise
from dpr_lightning.evaluation.judge_endpoint import Endpoint, EndpointSpec
from dpr_lightning.paths import Writes
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console


def judge(
    first: Rows,
    second: Rows,
    endpoint: EndpointSpec,
    cache: Annotated[str, Writes(marks=('"reply"',))] = "runs/judge/replies.jsonl",
    limit: int | None = None,
    output: Annotated[str | None, Writes(marks=('"dollars"',))] = None,
) -> None:
    """Compare two policies' answers to the same prompts through an OpenAI-compatible endpoint, in both orders.

    Args:
        first: answers as `dpr generate --output` writes them, or AlpacaEval's (instruction, output): a file, pattern or
            list of files.
        second: those of the other policy.
        endpoint: address of the judge, and the limit of its cost.
        cache: JSON Lines file of replies; requests with a reply there are not sent, or paid for, again.
        limit: judge the first so many prompts.
        output: JSON file to write.
    """
    sides = [answers_of(open_rows(answers)) for answers in (first, second)]
    matches = match_answers(*sides)[:limit]
    client = Endpoint(endpoint, cache)
    questions = [match.messages(swapped=swapped) for match in matches for swapped in (False, True)]
    with progress_bar("verdicts", len(questions)) as advance:
        replies = [parse_verdict(reply) for reply in client.ask_all(questions, advance)]
    report = summarise(matches, list(zip(replies[::2], replies[1::2], strict=True)))
    console.print(_words(report), highlight=False)
    console.print(f"{counted(client.requests, 'request')}, ${client.spent:.4f}; replies: {cache}", highlight=False)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        content = dataclasses.asdict(report) | {
            "requests": client.requests,
            "dollars": client.spent,
            "model": endpoint.model,
        }
        Path(output).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _words(report: JudgeReport) -> str:
    rate = report.win_rate
    lines = [
        f"The first policy wins {rate.mean:.1%} of {report.judged} prompts (95% {rate.low:.1%} to {rate.high:.1%}; "
        f"p = {report.p_value:.3g}): {report.verdict}.",
        f"Ties {report.ties:.1%}. In {report.flips:.1%} the winner changed with the order of the answers.",
        f"Mean length {report.words[0]:.1f} and {report.words[1]:.1f} words.",
    ]
    if report.longer_wins is not None:
        lines[-1] += f" The longer answer won {report.longer_wins:.1%} of the decided prompts."
    if report.place_bias is not None and abs(report.place_bias - 0.5) > 0.1:
        lines.append(
            f"The judge favours a position: {report.place_bias:.1%} of its verdicts went to the first of two answers."
        )
    if report.flips > 0.3:
        lines.append("It contradicts itself often: take another judge before believing the win rate.")
    if report.unreadable:
        lines.append(f"Not counted: {counted(report.unreadable, 'prompt')} with a reply that could not be read.")
    return "\n".join(lines)
