"""The forms of the dense reward, in a registry to which other packages add theirs.

A form is a function of the log-probabilities of the acted tokens, [B, T], or of every token of the vocabulary,
[B, T, V]; a divergence per state goes with the latter as ``divergence.unsqueeze(-1)``.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dpr_lightning.functional._checks import at_least_float32, expect_choice, expect_shape
from dpr_lightning.functional.token_rewards import clip_reward


class RewardTerms(NamedTuple):
    """What the reward of a token is a function of; log-probabilities in float32 or wider, of one shape.

    Attributes:
        policy: log π_SFT, nats, [B, T] or [B, T, V].
        baseline: b, nats: one log-probability out of those of the references.
        limit: nats, option ``clip_limit`` of the reward.
        interpolation: λ, option of the reward.
        state_divergence: D; read it as ``divergence``.
    """

    policy: Float[Tensor, "*shape"]
    baseline: Float[Tensor, "*shape"]
    limit: float
    interpolation: float
    state_divergence: Float[Tensor, "*state"] | None

    @property
    def log_ratio(self) -> Float[Tensor, "*shape"]:
        """r̂ = log π_SFT − b, nats."""
        return self.policy - self.baseline

    @property
    def divergence(self) -> Float[Tensor, "*state"]:
        """D = KL(π_SFT‖π_ref)(s), nats, broadcast to the shape.

        Raises:
            ValueError: the form is not registered with ``needs_divergence``, or the caller passed none.
        """
        if self.state_divergence is None:
            raise ValueError(
                "This form subtracts KL(π_SFT‖π_ref)(s): pass divergence (see kl_divergence), and register a form of "
                "your own with needs_divergence=True."
            )
        return self.state_divergence


FormFunction = Callable[[RewardTerms], Tensor]
_FORMS: dict[str, FormFunction] = {}
_NEED_DIVERGENCE: set[str] = set()


def reward_form(name: str | None = None, *, needs_divergence: bool = False) -> Callable[[FormFunction], FormFunction]:
    """Register a form of the token reward: a function of :class:`RewardTerms` that returns nats of the same shape.

    Args:
        name: by which configs name it; None: its import path, such as ``my_rewards.surprise``.
        needs_divergence: it reads ``terms.divergence``, for which the frozen models' whole distributions are computed.
    """

    def register(function: FormFunction) -> FormFunction:
        key = name if name is not None else f"{function.__module__}.{function.__qualname__}"
        _FORMS[key] = function
        if needs_divergence:
            _NEED_DIVERGENCE.add(key)
        return function

    return register


def form_names() -> tuple[str, ...]:
    """Every registered form: those of this package by their names, others by their import paths."""
    return tuple(_FORMS)


def form_needs_divergence(name: str) -> bool:
    """Whether the form reads KL(π_SFT‖π_ref)(s)."""
    return name in _NEED_DIVERGENCE


@reward_form("log_ratio")
def _log_ratio(terms: RewardTerms) -> Tensor:
    return terms.log_ratio


@reward_form("clipped")
def _clipped(terms: RewardTerms) -> Tensor:
    return clip_reward(terms.log_ratio, terms.limit)


@reward_form("interpolated")
def _interpolated(terms: RewardTerms) -> Tensor:
    if not 0.0 <= terms.interpolation <= 1.0:
        raise ValueError(f"interpolation is {terms.interpolation}, expected λ in [0, 1].")
    # λ = 0 must not multiply an infinite baseline
    return terms.policy - terms.interpolation * terms.baseline if terms.interpolation > 0.0 else terms.policy


@reward_form("centred", needs_divergence=True)
def _centred(terms: RewardTerms) -> Tensor:
    return terms.log_ratio - terms.divergence


@reward_form("one_sided")
def _one_sided(terms: RewardTerms) -> Tensor:
    return terms.log_ratio.clamp(max=0.0)


@reward_form("one_sided_centred", needs_divergence=True)
def _one_sided_centred(terms: RewardTerms) -> Tensor:
    return _centred(terms).clamp(max=0.0)


@reward_form("log_policy")
def _log_policy(terms: RewardTerms) -> Tensor:
    return terms.policy


FORMS: tuple[str, ...] = tuple(_FORMS)
"""The forms of this package."""


def dense_reward_form(
    form: str,
    policy_logprob: Float[Tensor, "*shape"],
    baseline_logprob: Float[Tensor, "*shape"],
    divergence: Float[Tensor, "*state"] | None = None,
    *,
    limit: float = 1.0,
    interpolation: float = 0.5,
) -> Float[Tensor, "*shape"]:
    """The forms a dense reward can take; r̂ = log π_SFT − b, D = KL(π_SFT‖π_ref)(s):

        log_ratio            r̂                             as published
        clipped              clip(r̂, −limit, limit)
        interpolated         log π_SFT − λ·b                 λ=1: log_ratio, λ=0: log_policy
        centred              r̂ − D                          mean 0 under π_SFT: no reward for reaching a state
        one_sided            min(r̂, 0)                      only tokens that training made less probable
        one_sided_centred    min(r̂ − D, 0)
        log_policy           log π_SFT                       ≤ 0, so it favours short responses

    Args:
        form: one of the names above, or of a form that :func:`reward_form` registered.
        policy_logprob: log π_SFT, nats, [B, T] or [B, T, V].
        baseline_logprob: b, nats, of the same shape: :func:`reference_baseline`.
        divergence: D, nats, broadcast to the shape; needed by the centred forms.
        limit: nats, of ``clipped``; above 0.
        interpolation: λ of ``interpolated``, in [0, 1].

    Returns:
        Nats per token.

    Raises:
        ValueError: an unknown form, shapes that do not fit, a form that needs a divergence without one, a limit or λ
            out of range.
    Source: ``log_ratio`` Li et al. 2025, arXiv:2510.02493; the other forms are ours.
    """
    expect_choice("form", form, form_names())
    expect_shape("baseline_logprob", baseline_logprob, policy_logprob.shape, "that of policy_logprob")
    policy_logprob, baseline_logprob = at_least_float32(policy_logprob), at_least_float32(baseline_logprob)
    if divergence is not None:
        _expect_broadcast(divergence, policy_logprob)
    reward = _FORMS[form](RewardTerms(policy_logprob, baseline_logprob, limit, interpolation, divergence))
    expect_shape("reward", reward, policy_logprob.shape, f"the form {form!r} returns a reward of each token")
    return reward


def mixed_dense_reward(
    weights: Mapping[str, float],
    policy_logprob: Float[Tensor, "*shape"],
    baseline_logprob: Float[Tensor, "*shape"],
    divergence: Float[Tensor, "*state"] | None = None,
    *,
    limit: float = 1.0,
    interpolation: float = 0.5,
) -> Float[Tensor, "*shape"]:
    """Weighted sum of forms:  r = Σ_f w_f·r_f, as in ``{"one_sided": 1.0, "log_policy": 0.5}``.

    Args:
        weights: weight of each form; forms of weight 0 are not computed.
        policy_logprob: see :func:`dense_reward_form`, as are the arguments that follow.
        baseline_logprob: b, nats.
        divergence: D, nats.
        limit: of ``clipped``.
        interpolation: λ of ``interpolated``.

    Raises:
        ValueError: no weight other than 0, or what :func:`dense_reward_form` raises.
    """
    terms = [
        weight
        * dense_reward_form(
            form, policy_logprob, baseline_logprob, divergence, limit=limit, interpolation=interpolation
        )
        for form, weight in weights.items()
        if weight != 0.0
    ]
    if not terms:
        raise ValueError(f"weights is {dict(weights)}: at least one form needs a weight other than 0.")
    return torch.stack(terms).sum(dim=0)


def _expect_broadcast(divergence: Tensor, target: Tensor) -> None:
    sizes = zip(divergence.shape, target.shape, strict=False)
    if divergence.dim() != target.dim() or any(length not in (1, expected) for length, expected in sizes):
        raise ValueError(
            f"divergence has shape {list(divergence.shape)}, which does not broadcast to {list(target.shape)}. "
            "Rewards of every token, [B, T, V], need divergence.unsqueeze(-1)."
        )
