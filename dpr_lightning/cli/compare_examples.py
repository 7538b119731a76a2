"""Answers of an arm for a reader to look at: to the first prompts, with what the dense reward says of them."""

from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.arms import ArmResult
from dpr_lightning.cli.rewards_command import right_and_wrong
from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.rewards import DenseReward
from dpr_lightning.types import Rollouts

# Prompts whose answers are kept. The first ones, whatever they say: nothing is picked.
KEPT_PROMPTS = 100


def examples_of(
    found: ArmResult, prompts: PromptSet, dense: DenseReward, tokenizer: PreTrainedTokenizerBase, *, pairs: bool
) -> dict[str, Any]:
    """The sampled answers to the first prompts, and what ``dense`` gives them; ``pairs`` of π_SFT's own, too.

    Returns:
        ``answers``: the first sample of each prompt, ``{"prompt", "text", "correct", "reward", "length"}``, reward the
        total in nats, length in tokens. ``pairs``: right and wrong samples side by side, as a report takes them.
    """
    answers = _first(found.sampled, min(KEPT_PROMPTS, len(prompts)) * found.samples)
    # Standardised over the answers of one arm, its total would say nothing beside another's.
    plain = replace(dense.spec, position_zscore=False, length_normalise=False)
    scores = DenseReward(dense.frozen, plain).score(answers.rollouts.tokens, answers.rollouts.mask, divergence=True)
    totals, right = scores.reward.sum(1).tolist(), answers.scores or []
    return {
        "answers": [
            {
                "prompt": prompts.texts[place],
                "text": answers.texts[row],
                "correct": right[row] == 1.0,
                "reward": totals[row],
                "length": answers.lengths[row],
            }
            for row, place in enumerate(answers.rollouts.prompt.tolist())
            if row % found.samples == 0
        ],
        "pairs": [asdict(pair) for pair in right_and_wrong(answers, scores, prompts.texts, tokenizer)] if pairs else [],
    }


def _first(answers: EvaluatedAnswers, rows: int) -> EvaluatedAnswers:
    kept = Rollouts(*(part[:rows] for part in answers.rollouts))
    assert answers.scores is not None
    return EvaluatedAnswers(kept, answers.texts[:rows], answers.scores[:rows], answers.lengths[:rows])
