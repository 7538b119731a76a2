"""Pairs of a chosen and a rejected response from files, for DPO and what is like it."""

from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.demonstrations import DEFAULT_TOKEN_BUDGET
from dpr_lightning.data.held_out import AUTO as AUTO_SHARE
from dpr_lightning.data.largest_batches import RepeatedBatch, largest_demonstrations
from dpr_lightning.data.opponent_data import OPPONENT, OpponentDataModule, last_turn, widen
from dpr_lightning.data.policy_data import Learner, MemoryCount, PairLearner
from dpr_lightning.data.response_pairs import OnEqual, PairedDataset, pair_up, read_reward_gaps
from dpr_lightning.data.rows import Rows, open_rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.data.tokenized_sources import check_longest
from dpr_lightning.engine import longest_row
from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies import AUTO, PolicySpec
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.types import DemonstrationBatch, SelfPlayBatch


class PreferenceDataModule(OpponentDataModule):
    """Pairs of a chosen and a rejected response to one prompt, read from files, for :class:`SelfPlay` and the like.

    Of a conversation of several turns only the last one is compared. Rows have the forms of TRL: ``prompt``, ``chosen``
    and ``rejected`` as texts or turns, or the prompt as the beginning of both responses; or ``messages`` before them.

    Args:
        train: as for :class:`DemonstrationDataModule`, of pairs.
        opponent: folder of the frozen policy that both responses are compared under, π_ref: the one from which
            training starts. A module that computes no log-ratios, such as ``VerifierHead``, needs none.
        on_equal: ``error`` refuses pairs whose two responses are the same, ``drop`` leaves them out and counts them.
        dtype: of the opponent's parameters.
        attention: its attention implementation.
        validation: as there, in pairs; all pairs of a prompt are on one side.
        options: everything else that :class:`DemonstrationDataModule` takes; a token budget counts both responses, a
            batch size pairs, and ``max_length`` limits each response with its prompt.

    Raises:
        InputError: as there; or a row has one response alone, an empty one, or two to different prompts.
    """

    def __init__(
        self,
        train: Rows,
        opponent: ReadPath | None = None,
        on_equal: OnEqual = "error",
        dtype: Dtype = "float32",
        attention: str = AUTO,
        validation: float | Literal["auto"] | Rows | None = AUTO_SHARE,
        **options: Any,
    ) -> None:
        super().__init__(train, validation, **options)
        self.opponent = opponent or ""
        self.on_equal: OnEqual = on_equal
        self.dtype, self.attention = dtype, attention

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the opponent where log-ratios are learnt.

        Raises:
            InputError: as there, or it is not named.
        """
        datasets = (self.train_data, self.validation_data, self.test_data)
        check_longest(policy, [each.rejected for each in datasets if isinstance(each, PairedDataset)])
        if self._scores_pairs and not self.opponent:
            raise InputError(
                "`data.opponent` is missing: pairs are compared under the policy that training starts from. Set it to "
                "the folder in `model.policy.source`."
            )
        if self._scores_pairs:
            super().attach_policy(policy, spec, tokenizer)
        else:
            super(OpponentDataModule, self).attach_policy(policy, spec, tokenizer)

    def pair(self, data: TokenizedDataset, batch: DemonstrationBatch, epoch: int) -> SelfPlayBatch:
        """Add the rejected responses, and the opponent's log-probabilities of both."""
        assert isinstance(data, PairedDataset)
        pad, index = int(self.tokenizer.pad_token_id), batch.row.numpy()
        rejected = data.rejected.batch(index, float(batch.num_tokens), pad, blank=not bool(batch.mask.any()))
        width = max(batch.tokens.shape[1], rejected.tokens.shape[1])
        tokens = torch.cat([widen(part.tokens, width, pad) for part in (batch, rejected)])
        mask = torch.cat([widen(last_turn(part.mask), width, False) for part in (batch, rejected)])
        logprob = torch.zeros(len(tokens))
        if self._scores_pairs:
            assert self._frozen is not None
            if self.trainer is not None:
                self._frozen.to(self.trainer.strategy.root_device)
            with self._frozen.use(OPPONENT) as model:
                logprob = self.opponent_logprobs(model, tokens, mask)
        gap = None if data.reward_gap is None else torch.from_numpy(data.reward_gap[index])
        return SelfPlayBatch(tokens, mask, logprob, batch.num_tokens, gap)

    def counted_batches(self, count: MemoryCount) -> RepeatedBatch:
        """Pairs of responses of ``max_length`` tokens (1,024 without), as many as a micro-batch has."""
        assert self.trainer is not None
        learner = self.trainer.lightning_module
        length = longest_row(cast(Learner, learner).policy, self.max_length or 1024)
        rows = self.batch_size or max(1, (self.token_budget or DEFAULT_TOKEN_BUDGET) // (2 * length))
        responses = largest_demonstrations(2 * rows, length)
        if self._scores_pairs:
            self._frozen = count.frozen_models({OPPONENT: self.opponent}, self.dtype, self.attention)
            self.count_opponent(count, responses.tokens, responses.mask)
        gap = torch.zeros(rows) if self._reads_rewards else None
        batch = SelfPlayBatch(responses.tokens, responses.mask, torch.zeros(2 * rows), torch.tensor(float(rows)), gap)
        return RepeatedBatch(batch, 2 * self.trainer.accumulate_grad_batches)

    @property
    def _reads_rewards(self) -> bool:
        learner: object = None if self.trainer is None else self.trainer.lightning_module
        return isinstance(learner, PairLearner) and learner.needs_pair_rewards

    def _tokenized(self, source: Rows, progress: bool) -> TokenizedDataset:
        rows = open_rows(source)
        data = pair_up(rows, lambda responses: self._tokenized_rows(responses, progress), self.on_equal)
        if self._reads_rewards:
            data.reward_gap = read_reward_gaps(rows, data.numbers, self.limit)
        return data

    def _lengths(self, data: TokenizedDataset) -> NDArray[np.int64]:
        assert isinstance(data, PairedDataset)
        return 2 * np.maximum(data.lengths, data.rejected.lengths)
