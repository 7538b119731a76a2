"""Pairs of a demonstration and an opponent's answer to the same prompt, for SPIN and GSIL."""

from typing import Any

import torch

from dpr_lightning.data.largest_batches import RepeatedBatch, largest_pairs
from dpr_lightning.data.opponent_data import OPPONENT, OpponentDataModule, last_turn, widen
from dpr_lightning.data.policy_data import MemoryCount
from dpr_lightning.data.rows import Rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.engine import longest_row
from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies import AUTO, special_tokens
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.rollouts import SamplingOptions, decode_longest, sample
from dpr_lightning.types import DemonstrationBatch, SelfPlayBatch


class SelfPlayDataModule(OpponentDataModule):
    """Demonstrations, each paired with an answer of a frozen opponent that is sampled anew every epoch.

    Of a conversation of several turns only the last one is paired: the opponent answers the turns before it.

    Args:
        train: as for :class:`DemonstrationDataModule`.
        opponent: folder of the policy whose answers are rejected: usually the one from which training starts.
        sampling: options of its answers.
        dtype: of its parameters.
        attention: its attention implementation.
        validation: as there; none by default, since an answer is sampled for every row of it.
        options: everything else that :class:`DemonstrationDataModule` takes; a token budget counts demonstrations.

    Raises:
        InputError: as there; or the opponent samples at temperature 0.
    """

    def __init__(
        self,
        train: Rows,
        opponent: ReadPath,
        sampling: SamplingOptions | None = None,
        dtype: Dtype = "float32",
        attention: str = AUTO,
        validation: float | Rows | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, **options)
        self.opponent: str = opponent
        self.sampling = sampling if sampling is not None else SamplingOptions()
        if self.sampling.temperature == 0:
            raise InputError("The opponent's answers are samples: set `data.sampling.temperature` to 1.")
        self.dtype, self.attention = dtype, attention

    def pair(self, data: TokenizedDataset, batch: DemonstrationBatch, epoch: int) -> SelfPlayBatch:
        """Sample the opponent's answers, and compute its log-probabilities of demonstrations and answers."""
        assert self._frozen is not None
        if self.trainer is not None:
            self._frozen.to(self.trainer.strategy.root_device)
        turn = last_turn(batch.mask)
        # A row of a blank batch has no turn to learn; its answer must not count either.
        counts = turn.any(1, keepdim=True)
        start = turn.long().argmax(1).clamp_min(1).tolist()
        pad = int(self.tokenizer.pad_token_id)
        with self._frozen.use(OPPONENT) as model:
            answers = sample(
                model,
                [tokens[:end].tolist() for tokens, end in zip(batch.tokens, start, strict=True)],
                self.sampling,
                stop_tokens=special_tokens(self.tokenizer, model).stops,
                pad_token=pad,
                seed=self.seed + 1_000_003 * (epoch + 1),
                prompt_ids=batch.row.tolist(),
                tokenizer=self.tokenizer,
            )
            width = max(batch.tokens.shape[1], answers.tokens.shape[1])
            tokens = torch.cat([widen(part, width, pad) for part in (batch.tokens, answers.tokens)])
            mask = torch.cat([widen(part, width, False) for part in (turn, answers.mask & counts)])
            logprob = self.opponent_logprobs(model, tokens, mask)
        # The base class's sampler counts 1 for each example here, so its "tokens" of a step are pairs.
        return SelfPlayBatch(tokens, mask, logprob, batch.num_tokens)

    def counted_batches(self, count: MemoryCount) -> RepeatedBatch:
        """Pairs of the longest demonstrations and answers, sampled and scored by an opponent without content."""
        batches = super().counted_batches(count)
        self._frozen = count.frozen_models({OPPONENT: self.opponent}, self.dtype, self.attention)
        rows, length = batches.batch.tokens.shape
        answer = self.sampling.max_new_tokens
        with self._frozen.use(OPPONENT) as model:
            prompt = max(1, longest_row(model, length - 1 + answer) - answer)
            pairs = largest_pairs(batches.batch, prompt, answer)
            with count.phase(f"sampling {min(rows, self.sampling.batch_size)} answers at once"):
                decode_longest(model, batches.batch.tokens[:, :prompt].tolist(), self.sampling, 1)
        self.count_opponent(count, pairs.tokens, pairs.mask)
        return RepeatedBatch(pairs, len(batches))
