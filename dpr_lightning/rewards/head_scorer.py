"""The global reward model: a verifier head reads a whole response, and its output is the score."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.policies import load_verifier_head, score_responses
from dpr_lightning.policies.policy_spec import Dtype


class HeadScorer:
    """Implements :class:`~dpr_lightning.rewards.OutcomeScorer` by a verifier head.

    Args:
        model: from :func:`dpr_lightning.policies.load_verifier_head`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: str, tokenizer: PreTrainedTokenizerBase, dtype: Dtype = "float32") -> "HeadScorer":
        """Load a trained head for responses in the tokens of ``tokenizer``.

        Raises:
            InputError: the folder has no trained head, or another vocabulary.
        """
        return cls(load_verifier_head(folder, tokenizer, dtype))

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)

    def score(
        self, tokens: Tensor, mask: Tensor, sft_logprob: Callable[[], Tensor], token_budget: int | None = None
    ) -> Tensor:
        """The output of the head at the last token of each response [B]; π_SFT is not needed."""
        return score_responses(self.model, tokens, mask, token_budget=token_budget)
