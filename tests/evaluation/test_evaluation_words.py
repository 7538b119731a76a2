"""An evaluation in a few lines: what is right, what was cut, and answers beside what was expected."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.evaluation.evaluation_words import WIDTH, evaluation_lines, evaluation_result


def lines(scores: list[float], samples: int = 1, cut: int = 0, metadata: Any = None, **answers: Any) -> list[str]:
    """The lines on answers ``a0``, ``a1``, … to questions ``q0``, ``q1``, …, of which the first ``cut`` were cut."""
    count = len(scores)
    rollouts: Any = SimpleNamespace(
        prompt=torch.arange(count) // samples, terminated=torch.arange(count) >= cut, tokens=None, mask=None
    )
    texts = answers.pop("texts", [f"a{row}" for row in range(count)])
    scored = EvaluatedAnswers(rollouts, texts, scores, [10] * count, **answers)
    prompts: Any = SimpleNamespace(
        texts=[f"q{index}" for index in range(count)],
        metadata=[metadata or {"answer": f"e{index}"} for index in range(count)],
    )
    return list(evaluation_lines(scored, prompts, evaluation_result(scored, samples), 128))


def test_one_answer_a_prompt() -> None:
    first, second, *examples = lines([0, 1, 0, 0, 1, 1, 1, 1, 1, 1] + [0] * 10, cut=3)
    assert first == "7/20 right [18%, 57%]; 3/20 cut at 128 tokens"  # Wilson 1927
    assert second == "mean length 10.0 tokens"
    assert examples == [
        "\nwrong, cut: q0",
        "  expected: e0",
        "  answer:   a0",
        "\nright, cut: q1",
        "  expected: e1",
        "  answer:   a1",
        "\nwrong, cut: q2",
        "  expected: e2",
        "  answer:   a2",
    ]


def test_several_answers_a_prompt_and_partial_scores() -> None:
    first, second, *examples = lines([0, 1, 0, 0, 1, 1, 0, 0], samples=2, reverse_kl=[0.5] * 8)
    assert first.startswith("3/8 right of 4 prompts [")
    assert second == "mean length 10.0 tokens; pass@2 0.500; reverse KL to π_SFT 0.500 nats an answer"
    assert [line for line in examples if "q" in line] == ["\nright: q0", "\nwrong: q1", "\nwrong: q3"]
    assert lines([0.25, 0.75])[0].startswith("score 0.500 [")
    assert lines([0.25, 0.75])[0].endswith("] over 2 prompts; 0/2 cut at 128 tokens")


@pytest.mark.parametrize(("scores", "judged"), [([1.0, 1.0], "right"), ([0.0, 0.0], "wrong")])
def test_answers_of_one_kind(scores: list[float], judged: str) -> None:
    assert [line for line in lines(scores) if "q" in line] == [f"\n{judged}: q0", f"\n{judged}: q1"]


def test_long_texts_are_cut_and_other_columns_named() -> None:
    metadata = {"tests": "x\n" * 200}
    _, _, question, expected, answer, *_ = lines([0.0, 0.0], texts=["much " * 50 + "42", "b"], metadata=metadata)
    assert question == "\nwrong: q0"
    assert expected.startswith("  expected: … ")
    assert answer.endswith("much 42")
    assert len(answer) <= WIDTH + len("  answer:   ")
    assert "expected" not in "".join(lines([0.0, 0.0], metadata={"answer": ""}))
