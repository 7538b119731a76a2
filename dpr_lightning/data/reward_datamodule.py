"""Prompts become rollouts with rewards before the policy-gradient step sees them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import SpecialText, check_setting, choose_format
from dpr_lightning.data.demonstrated_responses import DemonstratedResponses
from dpr_lightning.data.ground_truth import check_ground_truth
from dpr_lightning.data.overlap import check_overlap
from dpr_lightning.data.precomputed import hash_of_prompts, hashed_options, saved_rollouts
from dpr_lightning.data.prompts import PromptSet, check_prompt_positions
from dpr_lightning.data.rollout_loader import RolloutLoader
from dpr_lightning.data.rollout_memory import RolloutMemory
from dpr_lightning.data.rollout_schedule import RolloutSchedule
from dpr_lightning.data.rows import Rows
from dpr_lightning.data.tokenized_sources import check_longest
from dpr_lightning.distributed import mark, sum_over_ranks
from dpr_lightning.engine import shares_prompts
from dpr_lightning.errors import InputError, counted
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies import AUTO, PolicySpec, Weights, load_tokenizer
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.policies.tokenizers import same_vocabulary
from dpr_lightning.policies.weights_dtype import dtype_of
from dpr_lightning.progress import progress_bar
from dpr_lightning.rewards import SFT, DenseReward, RewardSpec, ScorerSpec, load_scorer
from dpr_lightning.rewards.cache import policy_hash
from dpr_lightning.rollouts import (
    ExternalSampler,
    RolloutPrefetcher,
    SamplingOptions,
    prefetch_device,
)
from dpr_lightning.types import RolloutBatch, Rollouts

log = logging.getLogger(__name__)


class RewardDataModule(RolloutMemory):
    """Samples from the current policy, scores with frozen models, and yields token ids, masks and rewards.

    Token ids travel from the sampler to the loss; text is never encoded again.

    Args:
        prompts: files or dataset name with the prompts to learn on, as ``train`` of :class:`DemonstrationDataModule`;
            completions in it are ignored.
        sft: folder of π_SFT.
        references: folders of weaker checkpoints of the same run.
        reward: form of the reward; None: :meth:`RewardSpec.recommended`.
        sampling: how the policy answers.
        samples_per_prompt: K.
        prompts_per_rollout: prompts of one rollout, over all ranks.
        refresh_every: optimizer steps that use a rollout; 1 is on-policy.
        precomputed: folder that keeps one rollout of π_SFT over all prompts, with its rewards; made once, used instead
            of sampling from the current policy. Refused when it was made from anything else.
        held_out: demonstrations the reward is monitored on, and that must not share prompts with ``prompts``.
        evaluation: prompts kept for evaluation, that must not share any with ``prompts``.
        exclude: rows whose prompts are left out of ``prompts``, such as those that SFT held out of the same file.
        allow_overlap: only report shared prompts.
        columns: names of the columns when they are not ``prompt`` or ``messages``.
        chat_template_kwargs: values for variables of the chat template, such as ``{enable_thinking: false}``, beyond
            those that π_SFT was trained with; the policy is saved with them in its template.
        max_prompt_length: tokens.
        over_length: what happens to longer prompts: ``error`` or ``drop``.
        dtype: of the frozen models' parameters.
        attention: their attention implementation.
        token_budget: tokens the frozen models read at once; None: 16,384, or, where their logits are whole, as many as
            have a GiB of them.
        frozen_weights: of π_SFT and references: ``whole`` on every rank, in ``shards`` over all ranks, or ``auto``,
            which goes by their size. Adapters on the policy's base lie where that lies.
        seed: of prompt order and samples.
        verifier: a function (prompt text, answer text, metadata) -> score in [0, 1] to learn from beside the token
            reward, or instead of it: see ``credit.outcome_weight`` and ``credit.dense_weight``; in a config its import
            path, such as ``dpr_lightning.evaluation.verifiers.answer``. None: demonstrations are all there is.
        sampler: another program that writes the answers, such as ``VllmSampler``; None: this package does.
        draw_ahead: device where a copy of the policy writes the next rollout's answers while the policy learns from
            this one's, such as ``cuda:1``, or ``same``: where the policy lies. A rollout is then as many steps old,
            when it is first used, as each serves (``refresh_every``). None: the policy writes each when it is needed.
        special_tokens_in_text: what becomes of special tokens that prompts spell: ``text``, ``tokens`` or ``error``.
            None: as π_SFT was trained.
        scorer: a model that scores whole responses, instead of ``verifier``: ``{head: FOLDER}``, a verifier head, or
            ``{policy: FOLDER, beta: β}``, the log-ratio to π_SFT of a policy trained on preferences.
    """

    def __init__(
        self,
        prompts: Rows,
        sft: ReadPath,
        references: list[ReadPath],
        reward: RewardSpec | None = None,
        sampling: SamplingOptions | None = None,
        samples_per_prompt: int = 4,
        prompts_per_rollout: int = 64,
        refresh_every: int = 1,
        precomputed: Annotated[str, Writes(shared=True)] | None = None,
        held_out: Rows | None = None,
        evaluation: Rows | None = None,
        exclude: Rows | None = None,
        allow_overlap: bool = False,
        columns: dict[str, str] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        max_prompt_length: int = 1024,
        over_length: Literal["error", "drop"] = "error",
        dtype: Dtype = "float32",
        attention: str = AUTO,
        token_budget: int | None = None,
        frozen_weights: Weights = "auto",
        seed: int = 0,
        verifier: Callable[[str, str, Mapping[str, Any]], float] | None = None,
        sampler: ExternalSampler | None = None,
        draw_ahead: str | None = None,
        special_tokens_in_text: SpecialText | None = None,
        scorer: ScorerSpec | None = None,
    ) -> None:
        super().__init__()
        if refresh_every < 1 or samples_per_prompt < 1 or prompts_per_rollout < 1:
            raise InputError("`refresh_every`, `samples_per_prompt` and `prompts_per_rollout` must be at least 1.")
        if sampling is not None and sampling.temperature == 0:
            raise InputError(
                "Rollouts at temperature 0 hold no alternatives to compare, and no log-probabilities. Set "
                "`sampling.temperature` to 1."
            )
        if sampler is not None and precomputed is not None:
            raise InputError(
                "`precomputed` keeps rollouts of this package's own sampler, whose ranks make the same ones. Leave "
                "`sampler` or `precomputed` out."
            )
        if draw_ahead is not None and (sampler is not None or precomputed is not None):
            raise InputError(
                "`draw_ahead` lets this package's sampler write rollouts of a policy that learns. Leave it out, or "
                "`sampler` and `precomputed`."
            )
        if scorer is not None and verifier is not None:
            raise InputError(
                "`data.verifier` and `data.scorer` both score whole responses, and a response has one such score. "
                "Leave one of them out."
            )
        check_setting(special_tokens_in_text)
        self.special_tokens_in_text: SpecialText | None = special_tokens_in_text
        self.sampler = sampler
        self.draw_ahead = draw_ahead
        self._ahead: RolloutPrefetcher | None = None
        self.prompts_path, self.held_out_path, self.evaluation_path = prompts, held_out, evaluation
        self.exclude_path = exclude
        self.sft, self.references = sft, list(references)
        self.reward_spec = reward if reward is not None else RewardSpec.recommended()
        self.verifier = verifier
        self.scorer_spec = scorer
        self.sampling = sampling if sampling is not None else SamplingOptions()
        self.samples_per_prompt = samples_per_prompt
        self.prompts_per_rollout = prompts_per_rollout
        self.refresh_every = refresh_every
        self.precomputed = precomputed
        self.allow_overlap = allow_overlap
        self.columns = columns
        self.chat_template_kwargs = chat_template_kwargs
        self.max_prompt_length, self.over_length = max_prompt_length, over_length
        self.dtype, self.attention = dtype, attention
        self.token_budget, self._parts = token_budget, 1
        self.frozen_weights = frozen_weights
        self.seed = seed
        self.prompts: PromptSet | None = None
        self._schedule: RolloutSchedule | None = None
        self.reward: DenseReward | None = None
        self._saved: RolloutBatch | None = None

    def learnt_prompt_hashes(self) -> NDArray[np.int64]:
        """Those of the prompts that are answered."""
        assert self.prompts is not None
        return self.prompts.prompt_hashes

    def manifest_entry(self) -> dict[str, Any]:
        """The prompts, and the length limit of answers."""
        return {"prompts": self.prompts_path, "max_new_tokens": self.sampling.max_new_tokens}

    def setup(self, stage: str) -> None:
        """Read the prompts and refuse those that evaluation or held-out demonstrations also have."""
        if self.prompts is not None:
            return
        if self.draw_ahead is not None:
            ranks = self.trainer.world_size if self.trainer is not None else 1
            self._ahead = RolloutPrefetcher(self.sft, self.attention, prefetch_device(self.draw_ahead, ranks))
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.sft)
        self.prompts = self._read_prompts(self.prompts_path)
        if self.exclude_path is not None:
            self.prompts = self.prompts.without(self.exclude_path, self.columns)
        check_ground_truth(self.prompts, self.verifier)
        if self.trainer is not None and self._learner.needs_demonstrations:
            if self.precomputed is not None:
                raise InputError(
                    "`data.precomputed` saves responses of π_SFT alone, and `model.against: demonstration` compares "
                    "with those of the rows. Leave one of them out."
                )
            self._demonstrated = DemonstratedResponses.read(
                self.prompts_path,
                self.prompts,
                self.tokenizer,
                self.columns,
                chat_template_kwargs=self.chat_template_kwargs,
                special_tokens_in_text=self.special_tokens_in_text,
            )
        further_rows = {"held-out demonstrations": self.held_out_path, "evaluation prompts": self.evaluation_path}
        sets = {"prompts": self.prompts}
        sets |= {name: self._read_prompts(path) for name, path in further_rows.items() if path is not None}
        report = check_overlap(sets, self.allow_overlap)
        log.info("%s", report)
        if len(self.prompts) < self.prompts_per_rollout:
            raise InputError(
                f"{self.prompts.file} has {counted(len(self.prompts), 'prompt')} and a rollout takes "
                f"{self.prompts_per_rollout}. "
                "Lower `data.prompts_per_rollout`, or bring more prompts."
            )

    def _read_prompts(self, path: Rows) -> PromptSet:
        return PromptSet.load(
            path,
            self.tokenizer,
            columns=self.columns,
            special_tokens_in_text=self.special_tokens_in_text,
            chat_template_kwargs=self.chat_template_kwargs,
            max_prompt_length=self.max_prompt_length,
            over_length=self.over_length,
        )

    def where(self, prompt: int) -> str:
        """``file:number`` of a prompt, by its place in the list."""
        assert self.prompts is not None
        return self.prompts.where(prompt)

    def held_out_rows(self) -> tuple[Rows, dict[str, str] | None] | None:
        """The rows of ``held_out``."""
        return None if self.held_out_path is None else (self.held_out_path, self.columns)

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the frozen models; adapters go on the base of ``policy`` when it has the same one.

        Raises:
            InputError: the policy and π_SFT do not share a vocabulary, a folder cannot be loaded, or prompts and
                answers do not fit into the policy's positions.
        """
        difference = same_vocabulary(load_tokenizer(self.sft), tokenizer)
        if difference is not None:
            raise InputError(
                f"The policy's tokenizer and that of π_SFT ({self.sft}) differ: {difference}. Start the policy from "
                "the same checkpoint."
            )
        if self.prompts is not None:
            check_prompt_positions(policy, self.prompts, self.sampling.max_new_tokens, "data.sampling.max_new_tokens")
            check_longest(policy, [None if self._demonstrated is None else self._demonstrated.data])
        if self.chat_template_kwargs:
            template_format = choose_format(load_tokenizer(self.sft), chat_template_kwargs=self.chat_template_kwargs)
            tokenizer.chat_template = template_format.chat_template
        device = self.trainer.strategy.root_device if self.trainer is not None else None
        self.reward = DenseReward.from_folders(
            self.sft,
            self.references,
            self.reward_spec,
            dtype=self.dtype,
            attention=self.attention,
            policy=policy,
            policy_spec=spec,
            weights=self.frozen_weights,
            device=device,
        )
        if self.scorer_spec is not None:
            self.scorer = load_scorer(
                self.scorer_spec,
                self.sft,
                dtype=self.dtype,
                attention=self.attention,
                policy=policy,
                policy_spec=spec,
                weights=self.frozen_weights,
                device=device,
            )

    def train_dataloader(self) -> RolloutLoader:
        """The loader; an epoch is one pass over the prompts."""
        trainer = self.trainer
        assert trainer is not None
        assert self.prompts is not None
        if self.prompts_per_rollout % trainer.world_size:
            raise InputError(
                f"`prompts_per_rollout` is {self.prompts_per_rollout} and there are {trainer.world_size} ranks; make "
                "it a multiple."
            )
        count, unit = self.prompts_per_rollout // trainer.world_size, "groups of responses"
        if not self._learner.whole_groups:
            count, unit = count * self.samples_per_prompt, "responses"
        if count < trainer.accumulate_grad_batches:
            raise InputError(
                f"A rollout has {count} {unit} a rank, too few for {trainer.accumulate_grad_batches} micro-batches. "
                "Lower `trainer.accumulate_grad_batches`."
            )
        if self.reward is None:
            learner = self._learner
            self.attach_policy(learner.policy, learner.policy_spec, learner.tokenizer)
        self._schedule = RolloutSchedule(
            self.prompts,
            self.tokenizer,
            self.sampling,
            self.samples_per_prompt,
            self.prompts_per_rollout,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            self.sampler,
            self._ahead,
        )
        return RolloutLoader(
            self,
            self._learner.learn_from,
            rollouts_per_epoch=self._schedule.rollouts_per_epoch,
            refresh_every=self.refresh_every,
            accumulate=trainer.accumulate_grad_batches,
            sum_over_ranks=sum_over_ranks,
        )

    def split_micro_batches(self, parts: int) -> None:
        """Let what is sampled and scored at once shrink as micro-batches do; that changes no sample and no score."""
        self.sampling = replace(self.sampling, batch_size=max(1, self.sampling.batch_size // parts))
        self._parts = parts

    @property
    def shares_prompts(self) -> bool:
        """Whether the policy reads a prompt once for the rows of a micro-batch that answer it."""
        return shares_prompts(self._learner.policy)

    def scored_rollout(self, epoch: int, index: int) -> RolloutBatch:
        """This rank's share of rollout ``index`` of an epoch, sampled by the policy after the last step, and scored."""
        mark(f"rollout {index} of epoch {epoch}")
        with self._learner.policy_for_inference():
            if self.precomputed is not None:
                rollout = self._saved_rollout(epoch, index)
            else:
                rollout = self._score_for_learner(self._with_demonstrations(self._sample(epoch, index)))
            rollout = self._with_policy_logprob(self._with_outcome(rollout))
        return rollout._replace(group_size=self._group_size)

    def _sample(self, epoch: int, index: int) -> Rollouts:
        """Samples of the policy."""
        trainer, policy = self.trainer, self._learner.policy
        assert trainer is not None
        assert self._schedule is not None
        last = 0 <= trainer.max_steps <= trainer.global_step + self.refresh_every
        return self._schedule.rollout(epoch, index, policy, last=last, epochs=trainer.max_epochs)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept, and what was drawn ahead is not used: a run goes on from a checkpoint with fresh answers.

        One that goes on from it then learns from the same as the one that saved it.
        """
        if self._ahead is not None:
            self._ahead.forget()
        return {}

    def teardown(self, stage: str) -> None:
        """Let go of what samples beside the policy."""
        for sampler in (self.sampler, self._ahead):
            if sampler is not None:
                sampler.close()

    def on_exception(self, exception: BaseException) -> None:
        """As at the end of a run."""
        super().on_exception(exception)
        self.teardown("fit")

    def _saved_rollout(self, epoch: int, index: int) -> RolloutBatch:
        """Rows of the precomputed rollouts, which are computed on first use."""
        assert self._schedule is not None
        indices = self._schedule.prompts_of(epoch, index)
        if self._saved is None:
            self._saved = self._precompute()
        group = torch.arange(self.samples_per_prompt)
        rows = (torch.tensor(indices).unsqueeze(1) * self.samples_per_prompt + group).flatten()
        return self._saved.take(rows)

    def _precompute(self) -> RolloutBatch:
        """Read the kept rollouts, or make them."""
        assert self.prompts is not None
        assert self.precomputed is not None
        key = {
            "sft": policy_hash(self.sft),
            "references": [policy_hash(reference) for reference in self.references],
            "reward": asdict(self.reward_spec),
            "prompts": hash_of_prompts(self.prompts.tokens),
            "sampling": hashed_options(self.sampling),
            "samples_per_prompt": self.samples_per_prompt,
            "seed": self.seed,
            "dtype": dtype_of(self.sft, self.dtype),
        }
        writes = self.trainer is None or self.trainer.is_global_zero
        return saved_rollouts(self.precomputed, key, self._sft_rollouts, writes=writes)

    def _sft_rollouts(self) -> RolloutBatch:
        """One rollout of π_SFT over all prompts, scored."""
        assert self.prompts is not None
        assert self._schedule is not None
        assert self.reward is not None
        self.reward.frozen.to(self._device)
        total = len(self.prompts) * self.samples_per_prompt
        shows = self.trainer is None or self.trainer.is_global_zero
        with self.reward.frozen.use(SFT) as policy, progress_bar("rollouts of π_SFT", total, shows) as advance:
            rollouts = self._schedule.answers(policy, list(range(len(self.prompts))), self.seed, advance)
        with progress_bar("rewards", total, shows) as advance:
            return self.score(rollouts, advance)
