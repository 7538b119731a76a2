"""Demonstrations as a LightningDataModule."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.batching import TokenBudgetBatchSampler
from dpr_lightning.data.chat_format import Format, SpecialText, carry_format, check_setting, choose_format
from dpr_lightning.data.held_out import AUTO, SelectedRows, holds_out, report_split, split_off, write_rows
from dpr_lightning.data.largest_batches import RepeatedBatch, largest_demonstrations
from dpr_lightning.data.learnt_parts import OnDropped
from dpr_lightning.data.loader import BatchLoader, DemonstrationLoader
from dpr_lightning.data.over_length import OverLength
from dpr_lightning.data.overlap import check_overlap
from dpr_lightning.data.policy_data import ConfiguredLearner, Learner, MemoryCount, PolicyDataModule
from dpr_lightning.data.row_columns import check_columns
from dpr_lightning.data.row_types import RowSource
from dpr_lightning.data.rows import Rows, open_rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.data.tokenized_sources import check_longest, log_counts, tokenize_or_load, tokenizer_of_data
from dpr_lightning.engine import longest_row
from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies import PolicySpec
from dpr_lightning.policies.adapters import resolve_adapter
from dpr_lightning.policies.special_tokens import token_id
from dpr_lightning.trainer_attributes import callbacks_of, is_trial

DEFAULT_TOKEN_BUDGET = 8192
CACHE = Writes("?" * 32, shared=True)
"""Entries are named by the first half of a SHA-256."""


class DemonstrationDataModule(PolicyDataModule):
    """Demonstrations to imitate, tokenised once and batched by length.

    Args:
        train: rows with ``messages``, or with ``prompt`` and ``completion``, or of another shape that docs/data.md
            lists: a file, a folder, a pattern such as ``shards/*.jsonl``, a ``datasets`` name (``owner/name:split``),
            or a list of these, ``{path: …, weight: …}`` for those that count more or less often; see
            :func:`~dpr_lightning.data.rows.open_rows`.
        validation: rows of another source; or a share in (0, 1) of the prompts of ``train`` to hold out; ``auto``: 5%
            of them, or more until they have 20 rows, at most a fifth of prompts and rows; None: nothing.
        test: rows of another source; None: the validation rows.
        tokenizer: hub id or folder; None: that of the policy in training.
        columns: the files' own names of our columns, such as ``{prompt: question, completion: answer}``.
        chat_template: a Jinja template or a file with one, instead of the tokenizer's own; ``none``: plain text. The
            policy is saved with it, and later stages use it.
        end_of_turn: the token, if it is not EOS, with which the template closes the assistant's turn; the policy is
            saved with it as one more token to stop at.
        chat_template_kwargs: values for variables of the chat template, such as ``{enable_thinking: false}``, in all
            rows that do not set them in a column of this name; the policy is saved with them in its template.
        on_dropped: where the chat template leaves out a part of a turn to learn (its reasoning, for
            example): ``error`` refuses the row, ``warn`` counts it and trains on the rest.
        max_length: tokens of the longest demonstration allowed, prompt included; None: no limit.
        over_length: ``error``, ``drop``, or ``truncate`` (the end is cut, and the answer counts as not terminated).
        token_budget: tokens a micro-batch on each device, padding included. Default 8192.
        batch_size: demonstrations a micro-batch, instead of a budget.
        validation_batch_size: demonstrations a batch in validation and test; None: as in training.
        length_ratio: about the longest over the shortest demonstration of those that are batched together.
        seed: of the order, and of the prompts held out.
        cache_dir: folder of the cache of tokens; None: no cache.
        limit: read only so many rows of each file.
        allow_overlap: report prompts that training and validation share without refusing them.
        special_tokens_in_text: how special tokens are encoded that the texts of rows spell: as ordinary ``text``, as
            ``tokens``, or ``error`` (refused). The policy is saved with it. None: as the checkpoint was trained, else
            ``text``.
        max_unknown: largest share of the tokens to learn that may be `<unk>`; with more, the file is refused.
        held_out_file: file that the rows held out of ``train`` are written to when training begins, as JSON lines with
            their own columns. None: they are not written; `dpr fit` writes ``held_out.jsonl`` to the run's folder.

    Attributes:
        train_data: the tokenised demonstrations; None before ``setup``.
        validation_data: those of validation; None without.
        test_data: those of test; None without.

    Raises:
        InputError: names the file, the row or the option, and the reason.
    """

    def __init__(
        self,
        train: Rows,
        validation: float | Literal["auto"] | Rows | None = AUTO,
        test: Rows | None = None,
        tokenizer: ReadPath | None = None,
        columns: dict[str, str] | None = None,
        chat_template: ReadPath | None = None,
        end_of_turn: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        on_dropped: OnDropped = "error",
        max_length: int | None = 1024,
        over_length: OverLength = "error",
        token_budget: int | None = None,
        batch_size: int | None = None,
        validation_batch_size: int | None = None,
        length_ratio: float = 1.1,
        seed: int = 0,
        cache_dir: Annotated[str, CACHE] | None = "~/.cache/dpr_lightning",
        limit: int | None = None,
        allow_overlap: bool = False,
        special_tokens_in_text: SpecialText | None = None,
        max_unknown: float = 0.01,
        held_out_file: Annotated[str, Writes()] | None = None,
    ) -> None:
        super().__init__()
        check_columns(columns)
        if limit is not None and limit < 1:
            raise InputError(f"`limit` must be at least 1 row; found {limit}.")
        if isinstance(validation, float) and not 0 < validation < 1:
            raise InputError(f"`validation` is a file, or a share between 0 and 1; found {validation}.")
        self.train, self.validation, self.test = train, validation, test
        self.tokenizer_source = tokenizer
        self.columns = columns
        self.chat_template = chat_template
        self.end_of_turn = end_of_turn
        self.chat_template_kwargs = chat_template_kwargs
        self.on_dropped: OnDropped = on_dropped
        self.max_length = max_length
        self.over_length: OverLength = over_length
        default_budget = DEFAULT_TOKEN_BUDGET if batch_size is None else None
        self.token_budget = token_budget if token_budget is not None else default_budget
        self.batch_size = batch_size
        self.validation_batch_size = validation_batch_size
        self.length_ratio = length_ratio
        self.seed = seed
        self.cache_dir = cache_dir
        self.limit = limit
        self.allow_overlap = allow_overlap
        check_setting(special_tokens_in_text)
        self.special_tokens_in_text: SpecialText | None = special_tokens_in_text
        self.max_unknown = max_unknown
        self.held_out_file = held_out_file
        self._wrote_held_out = False
        self.train_data: TokenizedDataset | None = None
        self.validation_data: TokenizedDataset | None = None
        self.test_data: TokenizedDataset | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._train_loader: DemonstrationLoader | None = None
        self._parts = 1

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when first needed.

        Raises:
            InputError: none was named and there is no policy to take it from, or it cannot be loaded.
        """
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of_data(self.tokenizer_source, self._policy_spec)
        return self._tokenizer

    @property
    def _policy_spec(self) -> PolicySpec | None:
        """Specification of the policy in training; available before the policy is built."""
        learner = None if self.trainer is None else self.trainer.lightning_module
        return learner.policy_spec if isinstance(learner, ConfiguredLearner) else None

    def _format(self) -> Format:
        spec = self._policy_spec
        policy = self.tokenizer_source
        if spec is not None:
            base, adapter = resolve_adapter(spec)
            policy = adapter or base.source
        return choose_format(
            self.tokenizer,
            self.chat_template,
            self.end_of_turn,
            self.chat_template_kwargs,
            policy,
            self.special_tokens_in_text,
        )

    def where(self, row: int) -> str:
        """``file:number`` of a training demonstration, by its index in ``train_data``."""
        assert self.train_data is not None
        return self.train_data.where(row)

    @classmethod
    def splits_off_rows(cls, options: Mapping[str, Any]) -> bool:
        """True where ``validation`` is a share of the training rows."""
        return holds_out(options.get("validation"))

    def held_out_rows(self) -> tuple[Rows | RowSource, dict[str, str] | None] | None:
        """The rows of ``validation``; of those held out of the training rows the file, where it was written."""
        if not holds_out(self.validation):
            return None if self.validation is None else (cast(Rows, self.validation), self.columns)
        if self.validation_data is None:
            return None
        if self._wrote_held_out and self.held_out_file is not None:
            return self.held_out_file, self.columns
        return self._validation_rows(self.validation_data), self.columns

    def learnt_prompt_hashes(self) -> NDArray[np.int64]:
        """Those of the demonstrations that are not held out."""
        assert self.train_data is not None
        return self.train_data.prompt_hashes

    def manifest_entry(self) -> dict[str, Any]:
        """The rows, how many are read, their columns' names, and the tokens of the longest demonstration and answer."""
        assert self.train_data is not None
        held_out = self.held_out_rows()
        return {
            "train": self.train,
            "held_out": held_out[0] if held_out is not None and isinstance(held_out[0], (str, list)) else None,
            "columns": self.columns,
            "max_length": self.max_length,
            "limit": self.limit,
            "max_new_tokens": int(self.train_data.acted_tokens.max(initial=1)),
        }

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put the format that the policy learns into the policy, which is saved with it.

        Called once, when the policy is built and before its first batch. Later commands that load the policy then use
        the same chat template and stop at the same tokens.

        Args:
            policy: its generation configuration takes ``end_of_turn`` as one more token to stop at.
            spec: may name the pad token.
            tokenizer: saved with the policy; takes the ``chat_template``, and pads with no token of it.

        Raises:
            InputError: a row is longer than the policy has positions.
        """
        check_longest(policy, (self.train_data, self.validation_data, self.test_data))
        carry_format(self._format(), policy, tokenizer, spec.pad_token)
        if token_id(self.tokenizer, str(tokenizer.pad_token)) == tokenizer.pad_token_id:
            self.tokenizer.pad_token = tokenizer.pad_token

    def prepare_data(self) -> None:
        """Tokenise what is not in the cache yet; called in one process of each machine, before ``setup``."""
        if self.cache_dir is not None:
            for source in self._sources():
                self._tokenized(source, progress=True)

    def setup(self, stage: str | None = None) -> None:
        """Load the tokens, split off the validation set, and check that no prompt is in two sets."""
        if self.train_data is not None:
            return
        sources = self._sources()
        data = [self._tokenized(source, progress=self._global_rank == 0) for source in sources]
        self.train_data = data[sources.index(self.train)]
        if holds_out(self.validation):
            share = cast(float | str, self.validation)
            self.train_data, self.validation_data = split = split_off(self.train_data, share, self.seed)
            if self.validation == AUTO:
                rank_zero_info(report_split(split, self.train_data.file))
            if stage == "fit":
                self._write_held_out()
        elif self.validation is not None:
            self.validation_data = data[sources.index(cast(Rows, self.validation))]
        self.test_data = data[sources.index(self.test)] if self.test is not None else self.validation_data
        for tokenized in data:
            rank_zero_info(str(tokenized.report))
            tokenized.report.log_notes()
        sets = {"training": self.train_data, "validation": self.validation_data}
        if self.test is not None:
            sets["test"] = self.test_data
        overlap = check_overlap(
            {name: dataset for name, dataset in sets.items() if dataset is not None}, self.allow_overlap
        )
        rank_zero_info(str(overlap))
        if self.trainer is not None:
            log_counts(self.trainer, {"train": self.train_data, "validation": self.validation_data})

    def train_dataloader(self) -> BatchLoader:
        """Batches in random order. A second call returns the same loader, at its position in the epoch.

        Raises:
            InputError: accumulation changes during training, but a batch carries the token count of its whole step.
        """
        if self.train_data is None:
            self.setup("fit")
        assert self.train_data is not None
        trainer = self.trainer
        accumulate = 1 if trainer is None else int(trainer.accumulate_grad_batches) // self._parts
        if trainer is not None and any(
            isinstance(callback, GradientAccumulationScheduler) and len(callback.scheduling) > 1
            for callback in callbacks_of(trainer)
        ):
            raise InputError(
                "GradientAccumulationScheduler changes accumulation during training, but each batch already carries "
                "the token count of its whole optimizer step. Set trainer.accumulate_grad_batches instead."
            )
        sampler = self._sampler(self.train_data, accumulate=accumulate, shuffle=True)
        loader = self._train_loader
        if loader is not None and loader.batches.plans_as(sampler):
            return loader
        limit = None if trainer is None else trainer.limit_train_batches
        if limit is not None:
            limit = int(limit * len(sampler)) if isinstance(limit, float) else limit // self._parts
        self._train_loader = self._loader(self.train_data, sampler, batches_per_epoch=limit, parts=self._parts)
        return self._train_loader

    def counted_batches(self, count: MemoryCount) -> RepeatedBatch:
        """Demonstrations of ``max_length`` tokens (1,024 without), as many as a micro-batch has."""
        assert self.trainer is not None
        length = longest_row(cast(Learner, self.trainer.lightning_module).policy, self.max_length or 1024)
        rows = self.batch_size or max(1, (self.token_budget or DEFAULT_TOKEN_BUDGET) // length)
        return RepeatedBatch(largest_demonstrations(rows, length), 2 * self.trainer.accumulate_grad_batches)

    def split_micro_batches(self, parts: int) -> None:
        """Split each micro-batch of training into ``parts``; the caller has the trainer accumulate over all of them."""
        self._parts = parts

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Every validation example once, longest first; no loader when there is no validation set."""
        return self._evaluation_loader(self.validation_data)

    def test_dataloader(self) -> DemonstrationLoader | list[Any]:
        """Every test example once."""
        return self._evaluation_loader(self.test_data)

    def predict_dataloader(self) -> DemonstrationLoader | list[Any]:
        """Every test example once: what ``dpr predict`` scores."""
        return self._evaluation_loader(self.test_data)

    def _validation_rows(self, data: TokenizedDataset) -> SelectedRows:
        source = self.train if holds_out(self.validation) else cast(Rows, self.validation)
        return SelectedRows(open_rows(source), data.numbers.tolist())

    def _write_held_out(self) -> None:
        """Write the rows held out on rank 0; Lightning has all ranks wait for each other after ``setup``."""
        trainer, data = self.trainer, self.validation_data
        if self.held_out_file is None or data is None or (trainer is not None and is_trial(trainer)):
            return
        if self._global_rank == 0:
            write_rows(self._validation_rows(data), Path(self.held_out_file).expanduser())
        self._wrote_held_out = True

    def _sources(self) -> list[Rows]:
        """The sources of training, validation and test, each once."""
        sources: list[Rows] = [self.train]
        validation = None if holds_out(self.validation) else cast(Rows | None, self.validation)
        for source in (validation, self.test):
            if source is not None and source not in sources:
                sources.append(source)
        return sources

    def _tokenized(self, source: Rows, progress: bool) -> TokenizedDataset:
        return self._tokenized_rows(open_rows(source), progress)

    def _tokenized_rows(self, rows: RowSource, progress: bool) -> TokenizedDataset:
        data = tokenize_or_load(
            rows,
            self.tokenizer,
            self._format(),
            self.cache_dir,
            progress=progress,
            columns=self.columns,
            max_length=self.max_length,
            over_length=self.over_length,
            on_dropped=self.on_dropped,
            limit=self.limit,
        )
        data.report.check_unknown(self.max_unknown)
        return data

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's index among those that see different data, and their number."""
        if self.trainer is None:
            return 0, 1
        shared = self.trainer.distributed_sampler_kwargs or {}
        return shared.get("rank", self.trainer.global_rank), shared.get("num_replicas", self.trainer.world_size)

    @property
    def _global_rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _sampler(
        self, data: TokenizedDataset, *, accumulate: int, shuffle: bool, batch_size: int | None = None
    ) -> TokenBudgetBatchSampler:
        rank, world_size = self._ranks
        return TokenBudgetBatchSampler(
            self._lengths(data),
            self._counted(data),
            token_budget=self.token_budget if batch_size is None else None,
            batch_size=self.batch_size if batch_size is None else batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            shuffle=shuffle,
            length_ratio=self.length_ratio,
        )

    def _lengths(self, data: TokenizedDataset) -> NDArray[np.int64]:
        """Tokens of each example that a token budget counts."""
        return data.lengths

    def _counted(self, data: TokenizedDataset) -> NDArray[Any]:
        """Each example's share of the number by which a step's loss is divided: the weight of its tokens to learn."""
        return data.loss_weights

    def _loader(
        self,
        data: TokenizedDataset,
        sampler: TokenBudgetBatchSampler,
        batches_per_epoch: int | None = None,
        parts: int = 1,
    ) -> DemonstrationLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        pad = int(self.tokenizer.pad_token_id)
        return DemonstrationLoader(
            data, sampler, pad, pin_memory=on_gpu, batches_per_epoch=batches_per_epoch, parts=parts
        )

    def _evaluation_loader(self, data: TokenizedDataset | None) -> DemonstrationLoader | list[Any]:
        if data is None:
            # Lightning warns of a loader without batches, which here means that no validation set is configured.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        return self._loader(
            data, self._sampler(data, accumulate=1, shuffle=False, batch_size=self.validation_batch_size)
        )
