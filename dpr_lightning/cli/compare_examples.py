"""Answers of an arm to the first prompts, with their dense reward, for the report."""

from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.arms import ArmResult
from dpr_lightning.cli.rewards_command import right_and_wrong
from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.rewards import DenseReward
from dpr_lightning.types import Rollouts

# Number of prompts whose answers are saved. Always the first ones: nothing is selected.
EXAMPLE_PROMPTS = 100


def examples_of(
    result: ArmResult, prompts: PromptSet, dense: DenseReward, tokenizer: PreTrainedTokenizerBase, *, pairs: bool
) -> dict[str, Any]:
    """The sampled answers to the first prompts with their rewards by ``dense``; with ``pairs``, right and wrong ones.

    Returns:
        ``answers``: the first sample of each prompt, ``{"prompt", "text", "correct", "reward", "length"}``, reward the
        total in nats, length in tokens. ``pairs``: right and wrong samples side by side, as a report takes them.
    """
    answers = _first(result.sampled, min(EXAMPLE_PROMPTS, len(prompts)) * result.samples)
    # Standardised over the answers of one arm, its totals could not be compared with another arm's.
    plain = replace(dense.spec, position_zscore=False, length_normalise=False)
    scores = DenseReward(dense.frozen, plain).score(answers.rollouts.tokens, answers.rollouts.mask, divergence=True)
    totals, right = scores.reward.sum(1).tolist(), answers.scores or []
    return {
        "answers": [
            {
                "prompt": prompts.texts[prompt],
                "text": answers.texts[row],
                "correct": right[row] == 1.0,
                "reward": totals[row],
                "length": answers.lengths[row],
            }
            for row, prompt in enumerate(answers.rollouts.prompt.tolist())
            if row % result.samples == 0
        ],
        "pairs": [asdict(pair) for pair in right_and_wrong(answers, scores, prompts.texts, tokenizer)] if pairs else [],
    }


def _first(answers: EvaluatedAnswers, rows: int) -> EvaluatedAnswers:
    rollouts = Rollouts(*(part[:rows] for part in answers.rollouts))
    assert answers.scores is not None
    return EvaluatedAnswers(rollouts, answers.texts[:rows], answers.scores[:rows], answers.lengths[:rows])
