"""Answers of a policy, scored by a verifier and measured against π_SFT."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.ground_truth import Verifier, check_ground_truth, verifier_scores
from dpr_lightning.data.prompts import PromptSet, check_prompt_positions
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.engine.decoding import Combine, single_model
from dpr_lightning.policies import SpecialTokens, special_tokens
from dpr_lightning.rollouts import SamplingOptions, decode_answers, sample
from dpr_lightning.types import Rollouts


@dataclass(frozen=True)
class EvaluatedAnswers:
    """Answers of a policy: one row a sample, the samples of a prompt in adjacent rows.

    ``texts`` without the stop at their end; ``scores`` by the verifier, None without one; ``lengths`` in tokens;
    ``reverse_kl`` nats a response, one a row: Σ_t log π − log π_SFT, None when not measured.
    """

    rollouts: Rollouts
    texts: list[str]
    scores: list[float] | None
    lengths: list[int]
    reverse_kl: list[float] | None = None

    @property
    def score(self) -> float:
        """Mean verifier score; NaN without a verifier."""
        return sum(self.scores) / len(self.scores) if self.scores else float("nan")

    @property
    def length(self) -> float:
        """Mean length, tokens."""
        return sum(self.lengths) / max(1, len(self.lengths))


def collect_answers(
    models: nn.Module | Sequence[nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    options: SamplingOptions,
    *,
    verifier: Verifier | None = None,
    num_samples: int = 1,
    seed: int = 0,
    combine: Combine = single_model,
    sft: nn.Module | None = None,
    indices: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EvaluatedAnswers:
    """Sample answers, score them, and measure how far they are from π_SFT.

    Args:
        models: the policy, or several for a decode-time combination.
        tokenizer: decodes answers for the verifier.
        prompts: that are answered.
        options: temperature 0 is greedy.
        verifier: (prompt text, answer text, metadata) -> score in [0, 1].
        num_samples: answers a prompt.
        seed: of the samples; with the same seed the samples of two policies are paired.
        combine: turns several models into one distribution.
        sft: π_SFT, for the reverse KL of the samples; not meaningful for greedy answers.
        indices: of the prompts that are answered, each as it would be among all prompts; None: every prompt.
        progress: called with the number of sequences finished.

    Raises:
        InputError: a prompt lacks a field that the verifier needs, or exceeds the model's positions; raised before
            anything is sampled.
    """
    check_ground_truth(prompts, verifier)
    sources = [models] if isinstance(models, nn.Module) else list(models)
    for source in sources:
        check_prompt_positions(source, prompts, options.max_new_tokens, "max_new_tokens")
    special = special_tokens(tokenizer, sources[0])
    selected = range(len(prompts)) if indices is None else indices
    rollouts = sample(
        sources,
        [prompts.tokens[index] for index in selected],
        options,
        stop_tokens=special.stops,
        pad_token=special.pad,
        num_samples=num_samples,
        seed=seed,
        prompt_ids=selected,
        combine=combine,
        tokenizer=tokenizer,
        progress=progress,
    )
    reverse_kl = _reverse_kl(rollouts, sft) if sft is not None and options.temperature > 0 else None
    return judge_answers(rollouts, tokenizer, special, prompts, verifier=verifier, reverse_kl=reverse_kl)


def judge_answers(
    rollouts: Rollouts,
    tokenizer: PreTrainedTokenizerBase,
    special: SpecialTokens,
    prompts: PromptSet,
    *,
    verifier: Verifier | None = None,
    reverse_kl: list[float] | None = None,
) -> EvaluatedAnswers:
    """Decode answers, and score them.

    Args:
        rollouts: answers to ``prompts``.
        tokenizer: decodes them for the verifier.
        special: tokens that end them.
        prompts: of the answers.
        verifier: (prompt text, answer text, metadata) -> score in [0, 1].
        reverse_kl: nats a response, if measured.
    """
    texts = decode_answers(rollouts.tokens, rollouts.mask, tokenizer, special)
    scores = None
    if verifier is not None:
        scores = verifier_scores(verifier, prompts, rollouts.prompt.tolist(), texts)
    return EvaluatedAnswers(rollouts, texts, scores, rollouts.mask.sum(1).tolist(), reverse_kl)


def _reverse_kl(rollouts: Rollouts, sft: nn.Module) -> list[float]:
    """Σ_t log π(a_t|s_t) − log π_SFT(a_t|s_t) of each sample; its mean estimates KL(π‖π_SFT)."""
    drift: list[float] = (rollouts.logprob - sequence_logprobs(sft, rollouts.tokens, rollouts.mask)).sum(1).tolist()
    return drift
