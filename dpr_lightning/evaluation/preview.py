"""Where is a reward heading? The optimum of the objective, estimated from samples of π_SFT before any RL.

KL-regularised reinforcement learning with reward r has the optimum

    π*(y|x) ∝ π_SFT(y|x) · exp(Σ_t r_t / β)

so n samples y_1 … y_n of π_SFT, weighted by w_i = softmax_i(Σ_t r_t(y_i)/β), are samples of π* as far as they reach
(sampling–importance–resampling, Rubin 1987). The effective sample size 1/Σ w_i² measures how far that is: near n all
samples count, near 1 the estimate is close to best-of-n, and the true optimum may be outside of all samples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.preview_results import (
    LEAST_EFFECTIVE_SAMPLES,
    Preview,
    PreviewPoint,
    RewardPreview,
    numbers,
)
from dpr_lightning.evaluation.preview_words import describe, nothing_to_rank
from dpr_lightning.evaluation.ranking import auc_within_groups
from dpr_lightning.evaluation.statistics import mean_interval, paired_comparison

__all__ = [
    "BETAS",
    "LEAST_EFFECTIVE_SAMPLES",
    "SHARPENING",
    "Preview",
    "PreviewPoint",
    "RewardPreview",
    "best_weights",
    "describe",
    "nothing_to_rank",
    "optimum_weights",
    "preview",
]

Samples = Float[NDArray[np.float64], "N n"]

BETAS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1)
SHARPENING = "log π_SFT (sharpening)"


def preview(
    returns: Mapping[str, ArrayLike],
    length: ArrayLike,
    *,
    score: ArrayLike | None = None,
    sft_logprob: ArrayLike | None = None,
    cut: ArrayLike | None = None,
    betas: Sequence[float] = BETAS,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Preview:
    """Estimate the optimum of each reward at each β from samples of π_SFT.

    Args:
        returns: by name of the reward, [N, n]: Σ_t r_t of sample n for prompt N, in nats.
        length: [N, n], tokens of each sample.
        score: [N, n], the verifier's score in [0, 1], if there is a verifier.
        sft_logprob: [N, n], Σ_t log π_SFT of each sample. With it, the preview includes the control that
            needs no reference: log π_SFT as the reward, whose optimum is π_SFT^{1+1/β}, a sharpening.
        betas: β > 0, nats of reward per nat of KL to π_SFT.
        confidence: coverage of the intervals, which are bootstrapped over prompts.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        InputError: shapes that differ, fewer than 2 prompts or samples, β ≤ 0, or numbers that are not finite.
    Source: the optimum is that of Korbak et al. 2022 (arXiv:2205.11275), eq. 5; effective sample size: Kong 1992.
    """
    lengths = _samples("length", length)
    scores = None if score is None else _samples("score", score, lengths.shape)
    if not betas or not all(beta > 0 and math.isfinite(beta) for beta in betas):
        raise InputError(f"betas={numbers(betas)}: every β must be a positive number, such as 1.0.")
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    named = {name: (_samples(name, values, lengths.shape), False) for name, values in returns.items()}
    if sft_logprob is not None:
        named[SHARPENING] = (_samples("sft_logprob", sft_logprob, lengths.shape), True)
    if not named:
        raise InputError("There is no reward to preview. Name at least one, such as log_ratio.")

    rewards = tuple(
        RewardPreview(
            name=name,
            control=control,
            auc=None if scores is None else _auc(values, scores),
            best_of_n=None if scores is None else float((best_weights(values) * scores).sum(axis=1).mean()),
            best_of_n_length=float((best_weights(values) * lengths).sum(axis=1).mean()),
            points=tuple(_point(values, lengths, scores, beta, **options) for beta in betas),
        )
        for name, (values, control) in named.items()
    )
    varies = None if scores is None else bool((scores != scores[:, :1]).any())
    best, best_control = (_surest(rewards, control=control) if varies else None for control in (False, True))
    against = None
    if scores is not None and best and best_control:
        ours, theirs = ((optimum_weights(named[n][0], b) * scores).sum(axis=1) for n, b in (best, best_control))
        against = paired_comparison(ours, theirs, **options)
    return Preview(
        prompts=lengths.shape[0],
        samples=lengths.shape[1],
        score=None if scores is None else mean_interval(scores.mean(axis=1), **options),
        length=float(lengths.mean()),
        varies=varies,
        cut=None if cut is None else float(_samples("cut", cut, lengths.shape).mean()),
        rewards=rewards,
        best=best,
        best_control=best_control,
        best_against_control=against,
    )


def optimum_weights(returns: Samples, beta: float) -> Samples:
    """Weight of each sample under π*:  w_i = exp(R_i/β) / Σ_j exp(R_j/β),  [N, n], each row sums to 1."""
    scaled = (returns - returns.max(axis=1, keepdims=True)) / beta
    weights = np.exp(scaled)
    normalised: Samples = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def best_weights(returns: Samples) -> Samples:
    """Weight of each sample under best-of-n, the limit β → 0; ties divide the weight, [N, n]."""
    best = returns == returns.max(axis=1, keepdims=True)
    normalised: Samples = best / best.sum(axis=1, keepdims=True)
    return normalised


def _point(returns: Samples, lengths: Samples, scores: Samples | None, beta: float, **options: Any) -> PreviewPoint:
    weights = optimum_weights(returns, beta)
    effective = float((1.0 / np.square(weights).sum(axis=1)).mean())
    difference, weighted = None, None
    if scores is not None:
        by_prompt, baseline = (weights * scores).sum(axis=1), scores.mean(axis=1)
        # rounding is no difference: prompts whose responses all score the same would all seem to lose 1e-16
        by_prompt = np.where(np.abs(by_prompt - baseline) < 1e-12, baseline, by_prompt)
        weighted = float(by_prompt.mean())
        difference = paired_comparison(by_prompt, baseline, **options)
    return PreviewPoint(
        beta=beta,
        score=weighted,
        length=float((weights * lengths).sum(axis=1).mean()),
        effective_samples=effective,
        effective_share=effective / returns.shape[1],
        difference=difference,
    )


def _surest(rewards: Sequence[RewardPreview], *, control: bool) -> tuple[str, float] | None:
    """The reward and β with the highest lower end of the interval, among those within the samples' reach."""
    candidates = [
        (point.difference.low, reward.name, point.beta)
        for reward in rewards
        for point in reward.points
        if reward.control == control and point.reliable and point.difference is not None
    ]
    if not candidates:
        return None
    # of ties the first: betas fall, and the largest needs the smallest step
    _, name, beta = max(candidates, key=lambda candidate: candidate[0])
    return name, beta


def _auc(returns: Samples, scores: Samples) -> float | None:
    """AUC within prompts; partial credit counts as wrong. None when no prompt has right and wrong responses."""
    prompt = np.repeat(np.arange(len(returns)), returns.shape[1])
    value = auc_within_groups(returns.ravel(), scores.ravel() >= 1.0, prompt)
    return None if math.isnan(value) else value


def _samples(name: str, values: Any, shape: tuple[int, ...] | None = None) -> Samples:
    """[N, n] in float64, from lists, arrays or tensors of any device."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or min(array.shape) < 2:
        raise InputError(
            f"{name} has shape {array.shape}; a preview needs [N, n], at least 2 prompts with 2 samples each."
        )
    if shape is not None and array.shape != shape:
        raise InputError(f"{name} has shape {array.shape} and length {shape}: one number for each sample in both.")
    odd = np.argwhere(~np.isfinite(array))
    if len(odd):
        prompt, sample = odd[0]
        raise InputError(
            f"{name} is {array[prompt, sample]} for sample {sample} of prompt {prompt} ({len(odd)} such)."
            " A reference that gives a sampled token probability 0 does this: score it in float32, or clip the reward."
        )
    return array
