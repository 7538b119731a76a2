"""Scored sequences as the responses of a page."""

from typing import Any

import torch

from dpr_lightning.reports.content import Response
from dpr_lightning.rollouts import decode_tokens
from dpr_lightning.types import TokenScores


def token_responses(
    tokens: torch.Tensor,
    mask: torch.Tensor,
    scores: TokenScores,
    tokenizer: Any,
    *,
    prompts: list[str],
    correct: list[bool] | None = None,
    label: str = "",
) -> list[Response]:
    """Scored sequences as responses of a report."""
    reference = scores.reference_logprobs.mean(0)
    responses = []
    for row, prompt in enumerate(prompts):
        scored = scores.mask[row]
        responses.append(
            Response(
                tokens=[decode_tokens(tokenizer, [token]) for token in tokens[row][mask[row]].tolist()],
                reward=scores.reward[row][scored].tolist(),
                policy_logprob=scores.policy_logprob[row][scored].tolist(),
                reference_logprob=reference[row][scored].tolist(),
                prompt=prompt,
                correct=None if correct is None else correct[row],
                label=label,
            )
        )
    return responses
