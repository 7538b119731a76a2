"""Pairs from files, with responses that the policy in training samples to their prompts."""

from functools import partial
from typing import Any, Protocol, cast

import torch

from dpr_lightning.data.largest_batches import RepeatedBatch, largest_samples
from dpr_lightning.data.loader import BatchLoader
from dpr_lightning.data.opponent_data import OPPONENT, SelfPlayLoader, last_turn
from dpr_lightning.data.policy_data import Learner, MemoryCount
from dpr_lightning.data.preference_datamodule import PreferenceDataModule
from dpr_lightning.data.rows import Rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.engine import action_logits, longest_row, model_device, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies import special_tokens
from dpr_lightning.rollouts import SamplingOptions, decode_longest, sample
from dpr_lightning.types import DemonstrationBatch, HybridBatch, OnlineResponses, Rollouts


class HybridLearner(Learner, Protocol):
    """A module that learns from pairs, and from responses of its own policy.

    ``needs_responses``: whether any are sampled; ``needs_distributions``: whether the opponent's log-probabilities of
    every token of the vocabulary are needed.
    """

    needs_responses: bool
    needs_distributions: bool


class HybridDataModule(PreferenceDataModule):
    """Pairs, each with responses of the policy in training to its prompt, scored by the opponent: for HyPO.

    Args:
        train: of pairs, as for :class:`PreferenceDataModule`.
        opponent: folder of π_ref.
        sampling: of the responses, which are samples of the policy itself: temperature 1, top_p 1.
        samples_per_prompt: K responses a pair; with one, nothing is subtracted from their costs.
        options: everything else that :class:`PreferenceDataModule` takes.

    Raises:
        InputError: as there; or the responses would be sampled from another distribution.
    """

    def __init__(
        self,
        train: Rows,
        opponent: ReadPath,
        sampling: SamplingOptions | None = None,
        samples_per_prompt: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(train, opponent, **options)
        self.sampling = sampling if sampling is not None else SamplingOptions()
        self.samples_per_prompt = samples_per_prompt
        if samples_per_prompt < 1:
            raise InputError(f"`data.samples_per_prompt` is {samples_per_prompt}: take 1 or more; the default is 2.")
        if self.sampling.temperature != 1.0 or self.sampling.top_p < 1.0:
            raise InputError(
                "`data.sampling` samples from another distribution than the policy, whose KL is estimated: set "
                "`data.sampling.temperature` and `data.sampling.top_p` to 1."
            )

    def train_dataloader(self) -> BatchLoader:
        """Pairs in random order, with responses that are sampled when the batch is taken."""
        loader = super().train_dataloader()
        assert isinstance(loader, SelfPlayLoader)
        demonstrations = loader.demonstrations
        return SelfPlayLoader(demonstrations, partial(self.with_responses, demonstrations.dataset))

    def with_responses(self, data: TokenizedDataset, batch: DemonstrationBatch, epoch: int) -> HybridBatch:
        """The pairs of a batch, and responses of the policy as the last step left it.

        Args:
            data: of the pairs.
            batch: of the chosen responses.
            epoch: that seeds the responses.
        """
        pairs = self.pair(data, batch, epoch)
        learner = self._hybrid_learner
        if not learner.needs_responses:
            return HybridBatch(pairs, None)
        start = last_turn(batch.mask).long().argmax(1).clamp_min(1).tolist()
        prompts = [tokens[:end].tolist() for tokens, end in zip(batch.tokens, start, strict=True)]
        special = special_tokens(self.tokenizer, learner.policy)
        with learner.policy_for_inference() as policy:
            samples = sample(
                policy,
                prompts,
                self.sampling,
                tokenizer=self.tokenizer,
                stop_tokens=special.stops,
                pad_token=special.pad,
                num_samples=self.samples_per_prompt,
                seed=self.seed + 1_000_003 * (epoch + 1),
                prompt_ids=batch.row.tolist(),
            )
        return HybridBatch(pairs, self._scored(samples, pairs.num_pairs))

    def counted_batches(self, count: MemoryCount) -> RepeatedBatch:
        """As for pairs, with the longest responses to the longest prompts."""
        batches, learner, answer = super().counted_batches(count), self._hybrid_learner, self.sampling.max_new_tokens
        pairs = batches.batch
        if not learner.needs_responses:
            return RepeatedBatch(HybridBatch(pairs, None), len(batches))
        rows, length = len(pairs.tokens) // 2, pairs.tokens.shape[1]
        prompt = max(1, longest_row(learner.policy, length - 1 + answer) - answer)
        samples = largest_samples(rows, self.samples_per_prompt, prompt, answer)
        at_once = min(self.sampling.batch_size, len(samples.tokens))
        with count.phase(f"sampling {at_once} answers at once"), learner.policy_for_inference() as policy:
            prompts = samples.tokens[:: self.samples_per_prompt, :prompt].tolist()
            decode_longest(policy, prompts, self.sampling, self.samples_per_prompt)
        with count.phase("scoring responses by the opponent"):
            return RepeatedBatch(HybridBatch(pairs, self._scored(samples, pairs.num_pairs)), len(batches))

    def _scored(self, samples: Rollouts, num_pairs: torch.Tensor) -> OnlineResponses:
        """Responses with what the opponent says of their tokens."""
        assert self._frozen is not None
        with torch.no_grad(), self._frozen.use(OPPONENT) as model:
            tokens, mask = (each.to(model_device(model)) for each in (samples.tokens, samples.mask))
            every = None
            if self._hybrid_learner.needs_distributions:
                scored = action_logits(model, tokens, mask)
                every = scored.logits.to(torch.promote_types(scored.logits.dtype, torch.float32)).log_softmax(-1)
                logprob = every.gather(-1, scored.tokens.unsqueeze(-1)).squeeze(-1).masked_fill(~scored.mask, 0.0)
            else:
                logprob = sequence_logprobs(model, tokens, mask)
        count = num_pairs * self.samples_per_prompt
        return OnlineResponses(tokens, mask, logprob, count, self.samples_per_prompt, every)

    @property
    def _hybrid_learner(self) -> HybridLearner:
        assert self.trainer is not None
        return cast(HybridLearner, self.trainer.lightning_module)
