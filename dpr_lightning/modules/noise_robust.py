"""Imitation of demonstrations some of which are wrong: small weights for tokens that look wrong, or a bounded loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_lightning.engine import Part
from dpr_lightning.errors import InputError
from dpr_lightning.functional import is_trimmed
from dpr_lightning.functional.imitation import MARGIN, SURE

OfTokens = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""A loss such as :func:`dpr_lightning.functional.sft_loss`, of log π, mask, number of tokens and weights."""


@dataclass
class GCESpec:
    """Options of the generalised cross-entropy (1 − π^q)/q.

    Args:
        q: from near 0, as ``sft``, to 1, whose gradient is that of ``dft``.
        after: share of the run from which it is the loss; ``sft`` before, as it learns little from improbable tokens.
    """

    q: float = 0.7
    after: float = 0.125

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if not (0 < self.q <= 1 and 0 <= self.after <= 1):
            raise InputError(
                f"`gce` has q {self.q} and after {self.after}: q is above 0 and at most 1, `after` a share of the run."
            )


@dataclass
class TrimSpec:
    """Options of trimmed imitation: tokens of which the policy is sure that they are others are hardly learnt.

    Early in a run, a policy knows what many demonstrations share and no single row by heart; what contradicts that is
    often a mistake. See :func:`dpr_lightning.functional.is_trimmed`, and docs/noisy.md for when it pays.

    Args:
        margin: nats by which the policy prefers its first choice to the demonstrated token, at least.
        sure: probability of its first choice, at least.
        after: share of the run from which tokens are trimmed; before, all are learnt.
        weight: of the loss of a trimmed token; that of the others is 1. Above 0, a rule that the policy is wrong about
            is still learnt, from the many rows that need it; mistakes, which share no rule, are not. 0: no loss.
    """

    margin: float = MARGIN
    sure: float = SURE
    after: float = 0.125
    weight: float = 0.01

    def __post_init__(self) -> None:
        """Refuse limits that no run can have."""
        within = 0 <= self.sure < 1 and 0 <= self.after <= 1 and 0 <= self.weight < 1
        if not (self.margin > 0 and within):
            raise InputError(
                f"`trim` has margin {self.margin}, sure {self.sure}, after {self.after} and weight {self.weight}: the "
                "margin is in nats and above 0, `sure` a probability below 1, `after` a share of the run, and `weight` "
                "below 1."
            )


class TokenImitation:
    """The imitation loss of demonstrated tokens, called with the log-probabilities of some of them after the others.

    Attributes:
        trimmed: [], how many of those tokens were trimmed.
    """

    def __init__(
        self, of_tokens: OfTokens, num_tokens: Tensor, weights: Tensor | None = None, trim: TrimSpec | None = None
    ) -> None:
        """Take what does not depend on the policy.

        Args:
            of_tokens: the loss.
            num_tokens: [], of the optimizer step.
            weights: [N] of the acted tokens; None: 1.
            trim: limits by which tokens are trimmed; None: none is.
        """
        self._of_tokens, self._num_tokens, self._weights, self._trim = of_tokens, num_tokens, weights, trim
        self.trimmed = torch.zeros((), device=num_tokens.device)

    def __call__(self, logprob: Tensor, part: Part) -> Tensor:
        """The sum of these tokens' losses."""
        weight = None if self._weights is None else self._weights[part.rows]
        if self._trim is not None:
            trimmed = is_trimmed(logprob.detach(), part.best, self._trim.margin, self._trim.sure)
            self.trimmed = self.trimmed + trimmed.sum()
            if self._trim.weight == 0:  # 0·log π would be NaN for an impossible token
                logprob = logprob.masked_fill(trimmed, 0.0)
            of_trim = torch.where(trimmed, self._trim.weight, 1.0).to(logprob.dtype)
            weight = of_trim if weight is None else weight * of_trim
        every = torch.ones_like(logprob, dtype=torch.bool).unsqueeze(0)
        row = None if weight is None else weight.unsqueeze(0)
        return self._of_tokens(logprob.unsqueeze(0), every, self._num_tokens, row)
