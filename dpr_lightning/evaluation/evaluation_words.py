"""An evaluation as JSON, and in a few lines: how many answers are right, and three of them beside what was expected."""

from collections.abc import Iterator, Mapping
from typing import Any

from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.errors import counted
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.evaluation.statistics import mean_interval, pass_at_k

RIGHT = 0.5
"""Score above which an answer counts as right."""
EXAMPLES = 3
WIDTH = 100
"""Characters of a text in an example."""


def evaluation_result(answers: EvaluatedAnswers, samples: int) -> dict[str, Any]:
    """The numbers of an evaluation, for JSON.

    Args:
        answers: scored; the samples of a prompt in adjacent rows.
        samples: answers a prompt.
    """
    assert answers.scores is not None
    grouped = [answers.scores[start : start + samples] for start in range(0, len(answers.scores), samples)]
    interval = mean_interval([sum(group) / samples for group in grouped])
    result: dict[str, Any] = {
        "score": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "length": answers.length,
        "prompts": len(grouped),
        "samples": samples,
        "cut": int(answers.rollouts.terminated.logical_not().sum()),
    }
    correct = [[score > RIGHT for score in group] for group in grouped]
    powers = [2**exponent for exponent in range(1, samples.bit_length())]
    result |= {f"pass@{k}": pass_at_k(correct, k) for k in powers}
    if answers.reverse_kl is not None:
        result["reverse_kl"] = sum(answers.reverse_kl) / len(answers.reverse_kl)
    return result


def evaluation_lines(
    answers: EvaluatedAnswers, prompts: PromptSet, result: Mapping[str, Any], max_new_tokens: int
) -> Iterator[str]:
    """The same for readers, a line each.

    Args:
        answers: scored.
        prompts: of the answers.
        result: from :func:`evaluation_result`.
        max_new_tokens: length limit of the answers.
    """
    scores = answers.scores or []
    count, prompts_of = len(scores), counted(int(result["prompts"]), "prompt")
    of_prompts = f" of {prompts_of}" if result["samples"] > 1 else ""
    if all(score in (0.0, 1.0) for score in scores):
        interval = f"[{result['low']:.0%}, {result['high']:.0%}]"
        first = f"{sum(scores):,.0f}/{count:,} right{of_prompts} {interval}"
    else:
        first = f"score {result['score']:.3f} [{result['low']:.3f}, {result['high']:.3f}] over {prompts_of}"
    yield f"{first}; {result['cut']:,}/{count:,} cut at {counted(max_new_tokens, 'token')}"
    details = [f"mean length {result['length']:.1f} tokens"]
    details += [f"{name} {value:.3f}" for name, value in result.items() if name.startswith("pass@")]
    if "reverse_kl" in result:
        details.append(f"reverse KL to π_SFT {result['reverse_kl']:.3f} nats an answer")
    yield "; ".join(details)
    for row in _examples(scores, int(result["samples"])):
        yield from _example(answers, prompts, row)


def _examples(scores: list[float], samples: int) -> list[int]:
    """The first right answer and the first wrong ones, each to another prompt; of one kind where there is no other."""
    right = [row for row, score in enumerate(scores) if score > RIGHT]
    wrong = [row for row, score in enumerate(scores) if score <= RIGHT]
    by_prompt: dict[int, int] = {}
    for row in (*right[:1], *wrong, *right[1:]):
        by_prompt.setdefault(row // samples, row)
    return sorted(list(by_prompt.values())[:EXAMPLES])


def _example(answers: EvaluatedAnswers, prompts: PromptSet, row: int) -> Iterator[str]:
    assert answers.scores is not None
    index = int(answers.rollouts.prompt[row])
    expected = _expected(prompts.metadata[index])
    judged = "right" if answers.scores[row] > RIGHT else "wrong"
    ended = "" if bool(answers.rollouts.terminated[row]) else ", cut"
    yield f"\n{judged}{ended}: {_start(prompts.texts[index])}"
    if expected:
        yield f"  expected: {_end(expected)}"
    yield f"  answer:   {_end(answers.texts[row])}"


def _expected(metadata: Mapping[str, Any]) -> str:
    """The text that is right: the row's ``answer``, else its other columns."""
    if metadata.get("answer") is not None:
        return str(metadata["answer"])
    return ", ".join(f"{name}={value}" for name, value in metadata.items())


def _start(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 2] + " …"


def _end(text: str) -> str:
    """The end, where answers have their result."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else "… " + line[2 - WIDTH :]
