"""The local reward model: a policy trained on preferences scores a response by its log-ratio to π_SFT."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpr_lightning.engine import model_device, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.policies import AUTO, FrozenPolicies, PolicySpec, Weights, load_tokenizer
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.policies.tokenizers import same_vocabulary
from dpr_lightning.rewards.dense_reward import same_folder

SCORER = "scorer"
"""Name of the model among frozen policies."""


class PolicyScorer:
    """Implements :class:`~dpr_lightning.rewards.OutcomeScorer` by  β·(log π(y|x) − log π_SFT(y|x)).

    Args:
        frozen: π, by the name ``scorer``.
        beta: β, units of score per nat.
    """

    def __init__(self, frozen: FrozenPolicies, beta: float) -> None:
        self.frozen, self.beta = frozen, beta

    @classmethod
    def load(
        cls,
        folder: str,
        sft: str,
        beta: float = 1.0,
        *,
        dtype: Dtype = "float32",
        attention: str = AUTO,
        policy: nn.Module | None = None,
        policy_spec: PolicySpec | None = None,
        weights: Weights = "whole",
        device: torch.device | None = None,
    ) -> "PolicyScorer":
        """Load π; an adapter on the base of ``policy``, which is in training, is put on that.

        Args:
            folder: of π.
            sft: folder of π_SFT.
            beta: β.
            dtype: of the parameters.
            attention: transformers' attention implementation.
            policy: a policy in training.
            policy_spec: from which ``policy`` was built.
            weights: ``whole`` on every rank, in ``shards``, or ``auto`` by their size.
            device: of this rank's shard.

        Raises:
            InputError: a folder cannot be loaded, the tokenizers differ, or π is π_SFT itself.
        """
        if same_folder(folder, sft):
            raise InputError(
                f"The scorer {folder!r} is π_SFT itself, so that every score would be 0. Name a policy that was "
                "trained on preferences from π_SFT, such as by configs/toy/dpo.yaml."
            )
        difference = same_vocabulary(load_tokenizer(sft), load_tokenizer(folder))
        if difference is not None:
            raise InputError(f"The scorer {folder!r} has another tokenizer than π_SFT ({sft}): {difference}.")
        frozen = FrozenPolicies.load(
            {SCORER: folder},
            dtype=dtype,
            attention=attention,
            policy=policy,
            policy_spec=policy_spec,
            weights=weights,
            device=device,
        )
        return cls(frozen, beta)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.frozen.to(device)

    def score(
        self, tokens: Tensor, mask: Tensor, sft_logprob: Callable[[], Tensor], token_budget: int | None = None
    ) -> Tensor:
        """The log-ratio of each response [B], times β."""
        with torch.no_grad(), self.frozen.use(SCORER) as model:
            device = model_device(model)
            logprob = sequence_logprobs(model, tokens.to(device), mask.to(device), token_budget=token_budget).sum(1)
        return self.beta * (logprob.to(tokens.device) - sft_logprob().to(tokens.device))
