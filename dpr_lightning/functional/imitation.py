"""Losses that learn from demonstrations: SFT, its weighted form DFT, its bounded form GCE, and IQ-Learn."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpr_lightning.functional._checks import (
    expect_choice,
    expect_dimensions,
    expect_discount,
    expect_mask,
    expect_positive,
    expect_shape,
    expect_terminated,
)
from dpr_lightning.functional.logprobs import token_logprobs_and_normaliser
from dpr_lightning.functional.masking import masked_sum
from dpr_lightning.functional.returns import following_value

ValueForm = Literal["value_expert", "v0"]


def sft_loss(
    logprob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    num_tokens: float | Float[Tensor, ""],
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Negative log-likelihood per token:  L = −Σ w·m·log π(a|s) / N, nats.

    Args:
        logprob: log π of the demonstrated tokens.
        mask: True where the demonstrator acted, EOS included.
        num_tokens: N, tokens (or the sum of their weights) of the whole optimizer step over accumulation and ranks, so
            that the parts add up.
        weights: w of each token; None: 1.

    Raises:
        ValueError: shapes that differ, or N ≤ 0.
    """
    expect_positive("num_tokens", num_tokens)
    return -masked_sum(logprob if weights is None else weights * logprob, mask) / num_tokens


def dft_loss(
    logprob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    num_tokens: float | Float[Tensor, ""],
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Dynamic fine-tuning, each token weighted by its own probability:  L = −Σ w·m·sg[π(a|s)]·log π(a|s) / N.

    Its gradient is that of −Σ m·π / N: the 1/π by which SFT stresses improbable tokens is gone.

    Args:
        logprob: log π of the demonstrated tokens, nats.
        mask: True where the demonstrator acted, EOS included.
        num_tokens: N, tokens (or the sum of their weights) of the whole optimizer step over accumulation and ranks.
        weights: w of each token; None: 1.

    Raises:
        ValueError: shapes that differ, or N ≤ 0.
    Source: Wu et al. 2025, arXiv:2508.05629.
    """
    expect_positive("num_tokens", num_tokens)
    mask = expect_mask(mask, logprob.shape, "that of logprob")
    inside = logprob.masked_fill(~mask, 0.0)
    weighted = inside if weights is None else weights * inside
    return -masked_sum(inside.detach().exp() * weighted, mask) / num_tokens


def gce_loss(
    logprob: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    num_tokens: float | Float[Tensor, ""],
    weights: Float[Tensor, "B T"] | None = None,
    *,
    q: float = 0.7,
) -> Float[Tensor, ""]:
    """Generalised cross-entropy per token, which is bounded:  L = Σ w·m·(1 − π(a|s)^q)/q / N.

    Its gradient is that of SFT times π^q, so an improbable token changes the policy little. For q → 0 it is SFT; at
    q = 1 its gradient is that of :func:`dft_loss`.

    Args:
        logprob: log π of the demonstrated tokens, nats.
        mask: True where the demonstrator acted, EOS included.
        num_tokens: N, tokens (or the sum of their weights) of the whole optimizer step over accumulation and ranks.
        weights: w of each token; None: 1.
        q: in (0, 1].

    Raises:
        ValueError: shapes that differ, N ≤ 0, or another q.
    Source: Zhang & Sabuncu 2018, arXiv:1805.07836, §3.2, there of labels of examples.
    """
    expect_positive("num_tokens", num_tokens)
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], found {q}.")
    mask = expect_mask(mask, logprob.shape, "that of logprob")
    loss = -torch.expm1(q * logprob.masked_fill(~mask, 0.0)) / q
    return masked_sum(loss if weights is None else weights * loss, mask) / num_tokens


MARGIN, SURE = 3.0, 0.5
"""Usual limits of :func:`is_trimmed`."""


def is_trimmed(
    logprob: Float[Tensor, "*S"], best: Float[Tensor, "*S"], margin: float, sure: float
) -> Bool[Tensor, "*S"]:
    """Where a policy is sure of another token:  log max_b π(b|s) − log π(a|s) ≥ margin and max_b π(b|s) ≥ sure.

    Such tokens are learnt with a small weight in *trimmed* imitation. A policy early in training knows the rules that
    many demonstrations share and not yet single rows, so what contradicts it is often a mistake, and with little
    gradient it is not memorised. A right token that the policy is wrong about comes back: other rows need the same
    rule, and their small gradients add up, whereas mistakes contradict each other.

    Args:
        logprob: log π of the demonstrated tokens, nats.
        best: log-probability of the most probable token of each state, nats.
        margin: nats, above 0.
        sure: a probability.

    Raises:
        ValueError: shapes that differ, or a limit out of range.
    Source: ours; truncating the loss of improbable labels is Zhang & Sabuncu 2018, arXiv:1805.07836, §3.3.
    """
    expect_shape("best", best, logprob.shape, "that of logprob")
    expect_positive("margin", margin)
    if not 0 <= sure < 1:
        raise ValueError(f"sure must be a probability in [0, 1), found {sure}.")
    return (best - logprob >= margin) & (best >= (math.log(sure) if sure > 0 else -math.inf))


def iq_learn_loss(
    logits: Float[Tensor, "B S V"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    terminated: Bool[Tensor, " B"],
    discount: float = 1.0,
    value_form: ValueForm = "value_expert",
    chi2_alpha: float | None = None,
    temperature: float = 1.0,
    *,
    normaliser: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Inverse soft-Q learning with logits as Q-values:  Q_t = logits_t[a_t], V_t = τ·logsumexp(logits_t/τ).

        r_t = Q_t − γV_{t+1}
        value_expert   L = −E[r_t] + E[V_t − γV_{t+1}]                       mean over tokens
        v0             L = −E[Σ_t γ^t r_t + γ^n V_n·(row was cut)] + E[V_0]   mean over sequences
        with χ²        L + (1/4α)·E[r_t²]

    t counts a row's actions: the state after an action is that of the row's next action, whatever other roles wrote
    in between. After the last action V is 0 if the row ``terminated``; if it was cut by a length limit V is that of the
    its last state, and the return of ``v0`` is bootstrapped with the same V_n.

    Written this way V' drops out of both forms, and so it is not computed for them:

        value_expert   = mean_t (V_t − Q_t)            the NLL, for every γ
        v0             = mean_b Σ_t γ^t (V_t − Q_t)    the NLL, summed over a row's tokens, at γ = 1 only

    For τ ≠ 1, V − Q = −τ·log softmax(Q/τ)[a]: the identities are with τ times the NLL of softmax(Q/τ).
    The χ² term is not a function of π alone: it also sees the offset that logits carry per state. Warm 1/α up.

    Args:
        logits: ``logits[b, t]`` predicts ``tokens[b, t]``. S is T, or T+1 with the state after the last token.
        tokens: the demonstrated tokens.
        mask: True where the demonstrator acted, EOS included; gaps and empty rows are allowed.
        terminated: the row's last action is a real EOS.
        discount: γ in [0, 1].
        value_form: how E[V(s_0)] is estimated.
        chi2_alpha: α > 0 of the χ² term; None leaves it out. The last action of a cut row has no r_t when S = T and
            its next state lies beyond; it then adds nothing, while the mean still counts it.
        temperature: τ > 0.
        normaliser: divides the sums instead of the number of masked tokens (``value_expert``) or of rows (``v0``)
            of this batch; pass that of the whole optimizer step, so that accumulated parts add up.

    Returns:
        Scalar, nats; 0 when the mask is empty.

    Raises:
        ValueError: shapes that do not fit, an unknown form, or a number out of range.
    Source: Garg et al. 2021, arXiv:2106.12142; γ = 1 and SFT: Li et al. 2025, arXiv:2510.02493.
    """
    expect_choice("value_form", value_form, get_args(ValueForm))
    expect_discount(discount)
    expect_dimensions("logits", logits, "B S V")
    expect_dimensions("tokens", tokens, "B T")
    batch, width = tokens.shape
    states = logits.shape[1]
    if states not in (width, width + 1):
        raise ValueError(f"logits cover {states} positions, expected T = {width}, or T + 1 for the state after.")
    expect_shape("logits", logits, (batch, states, logits.shape[2]), "the rows of tokens")
    mask = expect_mask(mask, tokens.shape, "that of tokens")
    terminated = expect_terminated(terminated, batch)
    if chi2_alpha is not None:
        expect_positive("chi2_alpha", chi2_alpha)
    if normaliser is None:
        normaliser = float(max(batch, 1)) if value_form == "v0" else mask.sum().clamp(min=1)
    else:
        expect_positive("normaliser", normaliser)

    # the state after the last token has no action; token 0 stands in and its log-probability is not used
    padded = torch.nn.functional.pad(tokens, (0, states - width))
    logprob, log_normaliser = token_logprobs_and_normaliser(logits, padded, temperature)
    logprob = logprob[:, :width].masked_fill(~mask, 0.0)
    linear = -temperature * logprob
    if value_form == "v0" and discount != 1.0:
        action = (mask.cumsum(dim=1) - 1).clamp(min=0)
        linear = linear * torch.pow(torch.tensor(discount, dtype=linear.dtype, device=linear.device), action)
    total = masked_sum(linear, mask)
    if chi2_alpha is not None:
        value = temperature * log_normaliser
        following, known = following_value(value, mask, terminated)
        quality = temperature * logprob + value[:, :width].masked_fill(~mask, 0.0)
        total = total + masked_sum((quality - discount * following).square(), known) / (4.0 * chi2_alpha)
    return total / normaliser
