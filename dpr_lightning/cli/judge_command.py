"""``dpr judge``: which of two policies answers better, judged by another model."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from dpr_lightning.data import PromptSet, Rows, open_rows
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.evaluated_answers import collect_answers
from dpr_lightning.evaluation.judge import JudgeReport, answers_of, match_answers, parse_verdict, summarise
from dpr_lightning.evaluation.judge_endpoint import Endpoint, EndpointSpec
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console
from dpr_lightning.rollouts import SamplingOptions


def judge(
    endpoint: EndpointSpec,
    first: Rows | None = None,
    second: Rows | None = None,
    policy: ReadPath | None = None,
    sft: ReadPath | None = None,
    prompts: Rows | None = None,
    columns: dict[str, str] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    dtype: Dtype = "float32",
    seed: int = 0,
    cache: Annotated[str, Writes(marks=('"reply"',))] = "runs/judge/replies.jsonl",
    limit: int | None = None,
    output: Annotated[str | None, Writes(marks=('"dollars"',))] = None,
) -> None:
    """Compare two policies' answers to the same prompts through an OpenAI-compatible endpoint, in both orders.

    Args:
        endpoint: address of the judge, and the limit of its cost.
        first: answers as `dpr generate --output` writes them, or AlpacaEval's (instruction, output): a file, pattern or
            list of files. None: those of ``policy``, sampled now.
        second: those of the other policy. None: those of ``sft``.
        policy: folder of a policy that answers ``prompts`` in place of ``first``.
        sft: folder of a policy that answers ``prompts`` in place of ``second``.
        prompts: file of prompts.
        columns: names of columns in the prompt file.
        max_new_tokens: length limit of an answer.
        temperature: of the answers; 0 is greedy.
        dtype: of the policies' parameters.
        seed: of the answers.
        cache: JSON Lines file of replies; requests with a reply there are not sent, or paid for, again.
        limit: judge the first so many prompts.
        output: JSON file to write.
    """
    if first is None and second is None and policy is not None and policy == sft:
        raise InputError(
            f"`policy` and `sft` are the same policy, {policy}, and its answers cannot win. Train one further "
            "(`dpr rl`), or name answers of another as `second`."
        )
    options = SamplingOptions(max_new_tokens, temperature)
    sides: list[dict[str, str]] = []
    for name, answers, stand_in, folder in (("first", first, "policy", policy), ("second", second, "sft", sft)):
        if answers is not None:
            sides.append(answers_of(open_rows(answers)))
        elif folder is not None and prompts is not None:
            sides.append(_answers(folder, prompts, options, columns, limit, dtype, seed))
        else:
            raise InputError(
                f"Whose answers are judged? Name a file of answers as `{name}`, or a policy as `{stand_in}` and "
                "`prompts` for it; `--run` takes both from a run."
            )
    if limit is not None and (first is None) != (second is None):
        sampled = sides[0] if first is None else sides[1]
        sides = [{prompt: answer for prompt, answer in side.items() if prompt in sampled} for side in sides]
    matches = match_answers(*sides)[:limit]
    client = Endpoint(endpoint, cache)
    questions = [match.messages(swapped=swapped) for match in matches for swapped in (False, True)]
    with progress_bar("verdicts", len(questions)) as advance:
        replies = [parse_verdict(reply) for reply in client.ask_all(questions, advance)]
    report = summarise(matches, list(zip(replies[::2], replies[1::2], strict=True)))
    compared = [answers or folder for answers, folder in ((first, policy), (second, sft))]
    console.print("First: {}. Second: {}.".format(*compared), highlight=False, markup=False, soft_wrap=True)
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


def _answers(
    folder: str,
    prompts: Rows,
    options: SamplingOptions,
    columns: dict[str, str] | None,
    limit: int | None,
    dtype: Dtype,
    seed: int,
) -> dict[str, str]:
    """An answer of a policy to each prompt."""
    model, tokenizer = frozen_policy(folder, dtype)
    questions = PromptSet.load(prompts, tokenizer, columns=columns, limit=limit)
    with progress_bar("answers", len(questions)) as advance:
        answers = collect_answers([model], tokenizer, questions, options, seed=seed, progress=advance)
    indices = answers.rollouts.prompt.tolist()
    return {questions.texts[index]: text for index, text in zip(indices, answers.texts, strict=True)}


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
