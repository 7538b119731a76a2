"""The preview of an objective, from a policy folder and prompts to numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.ground_truth import Verifier
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.evaluation.preview import BETAS, SHARPENING, Preview, preview
from dpr_lightning.evaluation.scored_samples import ScoredSamples, sample_and_score
from dpr_lightning.functional import FORMS
from dpr_lightning.rewards import DenseReward, RewardSpec, token_rewards
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import TokenScores


@dataclass(frozen=True)
class RewardPreviewRun:
    """A preview with its inputs: the samples of π_SFT and their scores by the frozen models."""

    preview: Preview
    answers: EvaluatedAnswers
    scores: TokenScores


def default_forms(spec: RewardSpec) -> dict[str, RewardSpec]:
    """Every single form, mixtures of a one-sided one with ½ log π_SFT, and the requested one, ``spec``.

    Raises:
        InputError: ``spec`` is standardised.
    """
    if spec.position_zscore or spec.length_normalise:
        raise InputError(
            "Whole responses are compared here, by the total of their reward: leave `position_zscore` and "
            "`length_normalise` out. They scale rewards for training."
        )
    forms: dict[str, RewardSpec] = {name: replace(spec, form=name) for name in FORMS if name != "log_policy"}
    recommended = replace(spec, form=RewardSpec.recommended().form)
    for mixture in (replace(spec, form={"one_sided": 1.0, "log_policy": 0.5}), recommended, spec):
        if mixture.form != "log_policy":
            forms[form_name(mixture)] = mixture
    return forms


def form_name(spec: RewardSpec) -> str:
    """A form's name in the preview: the form, or the weighted sum of several."""
    if isinstance(spec.form, str):
        return SHARPENING if spec.form == "log_policy" else spec.form
    factors = {1.0: "", 0.5: "½ "}
    parts = [(factors.get(weight, f"{weight:g} "), name) for name, weight in spec.form.items()]
    return " + ".join(factor + ("log π_SFT" if name == "log_policy" else name) for factor, name in parts)


def preview_reward(
    reward: DenseReward,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    options: SamplingOptions,
    *,
    verifier: Verifier | None = None,
    num_samples: int = 32,
    betas: Sequence[float] = BETAS,
    forms: dict[str, RewardSpec] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> RewardPreviewRun:
    """Sample π_SFT, score the samples once, and estimate the optimum of every form at every β.

    Args:
        reward: of π_SFT and the references; its form is always among those previewed.
        tokenizer: decodes the samples for the verifier.
        prompts: prompts that were not trained on.
        options: temperature and top-p must be 1: the weights assume samples of π_SFT itself.
        verifier: scores the samples.
        num_samples: n samples a prompt.
        betas: nats of reward per nat of KL.
        forms: by name; None takes :func:`default_forms`.
        seed: of the samples and of the bootstrap.
        progress: called with the number of sequences sampled.
    """
    samples = sample_and_score(
        reward,
        tokenizer,
        prompts,
        replace(options, temperature=1.0, top_p=1.0),
        verifier=verifier,
        num_samples=num_samples,
        seed=seed,
        progress=progress,
    )
    specs = forms if forms is not None else default_forms(reward.spec)
    return RewardPreviewRun(preview_samples(samples, specs, betas, seed), samples.answers, samples.scores)


def preview_samples(
    samples: ScoredSamples, specs: dict[str, RewardSpec], betas: Sequence[float] = BETAS, seed: int = 0
) -> Preview:
    """Estimate the optimum of every form at every β.

    Args:
        samples: of π_SFT, at temperature 1.
        specs: forms by name.
        betas: nats of reward per nat of KL.
        seed: of the bootstrap.
    """
    answers, scores = samples.answers, samples.scores
    shape = (len(answers.texts) // samples.samples, samples.samples)
    return preview(
        {name: token_rewards(scores, spec).sum(1).reshape(shape).numpy() for name, spec in specs.items()},
        torch.tensor(answers.lengths).reshape(shape).numpy(),
        score=None if answers.scores is None else torch.tensor(answers.scores).reshape(shape).numpy(),
        sft_logprob=(scores.policy_logprob * scores.mask).sum(1).reshape(shape).numpy(),
        cut=answers.rollouts.terminated.logical_not().reshape(shape).float().numpy(),
        betas=sorted(betas, reverse=True),
        seed=seed,
    )
