"""Learned scores of whole responses: by a verifier head, or by a policy's log-ratio to π_SFT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies import PolicySpec, Weights, load_tokenizer
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.rewards.head_scorer import HeadScorer
from dpr_lightning.rewards.policy_scorer import PolicyScorer


class OutcomeScorer(Protocol):
    """A frozen model that scores whole responses."""

    def to(self, device: torch.device) -> None:
        """Called before responses are scored: move the model there."""
        ...

    def score(
        self, tokens: Tensor, mask: Tensor, sft_logprob: Callable[[], Tensor], token_budget: int | None = None
    ) -> Tensor:
        """A number for each response [B], float32, on the device of ``tokens``.

        Args:
            tokens: [B, L] right-padded token ids.
            mask: [B, L] True where the policy acted.
            sft_logprob: returns log π_SFT of each whole response [B], nats; called by scorers that compare with it.
            token_budget: tokens of a forward pass; None: the model's default.
        """
        ...


@dataclass
class ScorerSpec:
    """A model that scores whole responses: ``head`` or ``policy``.

    Args:
        head: folder of a verifier head or reward model, an ``AutoModelForSequenceClassification`` with one output: the
            score is its output.
        policy: folder of a policy that was trained on preferences from π_SFT, such as by DPO: the score is
            β·(log π(y|x) − log π_SFT(y|x)), the local reward model that this policy is.
        beta: β of ``policy``, the ``model.scale`` that it was trained with: units of score per nat.

    Source: ``policy``: Rafailov et al. 2023 (paper), arXiv:2305.18290, eq. 5; global and local reward models: Swamy et
    al. 2025 (paper), arXiv:2503.01067.
    """

    head: ReadPath | None = None
    policy: ReadPath | None = None
    beta: float = 1.0

    def __post_init__(self) -> None:
        """Refuse two models, none, and a β that would invert or erase the score."""
        if (self.head is None) == (self.policy is None):
            count = "neither" if self.head is None else "both"
            raise InputError(
                f"`data.scorer` has {count} of `head` and `policy`: name the folder of one model that scores responses."
            )
        if not 0 < self.beta < float("inf"):
            raise InputError(
                f"`data.scorer.beta` is {self.beta:g}: it is the β that the policy was trained with, above 0."
            )
        if self.head is not None and self.beta != 1.0:
            raise InputError(
                "`data.scorer.beta` scales the log-ratio of `data.scorer.policy`: leave it out with `data.scorer.head`."
            )

    @property
    def folder(self) -> str:
        """That of the model."""
        return self.head or self.policy or ""


def load_scorer(
    spec: ScorerSpec,
    sft: str,
    *,
    dtype: Dtype,
    attention: str,
    policy: nn.Module,
    policy_spec: PolicySpec,
    weights: Weights,
    device: torch.device | None,
) -> OutcomeScorer:
    """Called when a training begins: the model of ``spec``, frozen; the options are of :meth:`PolicyScorer.load`.

    Raises:
        InputError: the folder has no such model, or another vocabulary than π_SFT.
    """
    if spec.head is not None:
        return HeadScorer.load(spec.head, load_tokenizer(sft), dtype)
    return PolicyScorer.load(
        spec.folder,
        sft,
        spec.beta,
        dtype=dtype,
        attention=attention,
        policy=policy,
        policy_spec=policy_spec,
        weights=weights,
        device=device,
    )
