"""Answers of an arm to the first prompts, with their dense reward, for the report."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.experiments.arm_answers import ArmResult
from dpr_lightning.reports import Pair, token_responses
from dpr_lightning.rewards import DenseReward
from dpr_lightning.types import Rollouts, TokenScores

# Number of prompts whose answers are saved. Always the first ones: nothing is selected.
EXAMPLE_PROMPTS = 100
MOST_PAIRS = 12


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


def right_and_wrong(
    answers: EvaluatedAnswers, scores: TokenScores, prompt_texts: Sequence[str], tokenizer: Any
) -> list[Pair]:
    """A right and a wrong answer to one prompt, for the first prompts that have both, coloured by r̂.

    Args:
        answers: samples of π_SFT that a verifier judged.
        scores: of their tokens.
        prompt_texts: by index of the prompt.
        tokenizer: decodes the tokens.
    """
    assert answers.scores is not None
    log_ratio = scores.policy_logprob - scores.reference_logprobs.mean(0)
    by_prompt: dict[int, dict[bool, int]] = {}
    for row, (prompt, score) in enumerate(zip(answers.rollouts.prompt.tolist(), answers.scores, strict=True)):
        by_prompt.setdefault(prompt, {}).setdefault(score == 1.0, row)
    both = [(prompt, rows) for prompt, rows in by_prompt.items() if len(rows) == 2][:MOST_PAIRS]
    pairs: list[Pair] = []
    for prompt, rows in both:
        pair_rows = torch.tensor([rows[True], rows[False]])
        right, wrong = token_responses(
            answers.rollouts.tokens[pair_rows],
            answers.rollouts.mask[pair_rows],
            TokenScores(
                scores.policy_logprob[pair_rows],
                scores.reference_logprobs[:, pair_rows],
                scores.divergence[pair_rows],
                log_ratio[pair_rows],
                scores.mask[pair_rows],
            ),
            tokenizer,
            prompts=[prompt_texts[prompt]] * 2,
            correct=[True, False],
            label="sample of π_SFT",
        )
        pairs.append(Pair(prompt_texts[prompt], right, wrong))
    return pairs
