"""Pairs of a demonstration and an opponent's answer to the same prompt, for SPIN and GSIL."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.demonstrations import DemonstrationDataModule
from dpr_lightning.data.largest_batches import RepeatedBatch, largest_pairs
from dpr_lightning.data.loader import BatchLoader, DemonstrationLoader
from dpr_lightning.data.policy_data import MemoryCount, PairLearner
from dpr_lightning.data.rows import Rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.engine import longest_row, model_device, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies import AUTO, FrozenPolicies, PolicySpec, special_tokens
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.rollouts import SamplingOptions, decode_longest, sample
from dpr_lightning.types import DemonstrationBatch, SelfPlayBatch

OPPONENT = "opponent"


class SelfPlayDataModule(DemonstrationDataModule):
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
        self.opponent = opponent
        self.sampling = sampling if sampling is not None else SamplingOptions()
        if self.sampling.temperature == 0:
            raise InputError("The opponent's answers are samples: set `data.sampling.temperature` to 1.")
        self.dtype, self.attention = dtype, attention
        self._frozen: FrozenPolicies | None = None

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the opponent; an adapter is put on the base of ``policy`` if that is its base too."""
        super().attach_policy(policy, spec, tokenizer)
        self._frozen = FrozenPolicies.load(
            {OPPONENT: self.opponent}, dtype=self.dtype, attention=self.attention, policy=policy, policy_spec=spec
        )

    def train_dataloader(self) -> BatchLoader:
        """Pairs in the random order of the demonstrations."""
        loader = super().train_dataloader()
        assert isinstance(loader, DemonstrationLoader)
        return SelfPlayLoader(loader, self.pair)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Every validation example once, with an answer that is the same at every validation."""
        loader = super().val_dataloader()
        return SelfPlayLoader(loader, self.pair) if isinstance(loader, DemonstrationLoader) else loader

    def pair(self, batch: DemonstrationBatch, epoch: int) -> SelfPlayBatch:
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
            tokens = torch.cat([_widen(part, width, pad) for part in (batch.tokens, answers.tokens)])
            mask = torch.cat([_widen(part, width, False) for part in (turn, answers.mask & counts)])
            if self._scores_pairs:
                logprobs = sequence_logprobs(model, tokens.to(model_device(model)), mask.to(model_device(model)))
                logprob = logprobs.sum(1).cpu()
            else:
                logprob = torch.zeros(len(tokens))
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
            if self._scores_pairs:
                with count.phase("scoring pairs by the opponent"):
                    sequence_logprobs(model, pairs.tokens, pairs.mask)
        return RepeatedBatch(pairs, len(batches))

    @property
    def _scores_pairs(self) -> bool:
        """Whether the module in training needs the opponent's log-probabilities; without a trainer, yes."""
        learner: object = None if self.trainer is None else self.trainer.lightning_module
        return not isinstance(learner, PairLearner) or learner.needs_opponent_logprob

    def _counted(self, data: TokenizedDataset) -> NDArray[np.int64]:
        return np.ones_like(data.acted_tokens)


class SelfPlayLoader:
    """A loader of demonstrations that pairs each batch with answers when it is taken.

    Args:
        demonstrations: determines the order, and has the position.
        pair: pairs a batch; its second argument is the epoch, which seeds the answers.
    """

    def __init__(
        self, demonstrations: DemonstrationLoader, pair: Callable[[DemonstrationBatch, int], SelfPlayBatch]
    ) -> None:
        self.demonstrations = demonstrations
        self.pair = pair

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        return len(self.demonstrations)

    def __iter__(self) -> Iterator[SelfPlayBatch]:
        """The next epoch, or the rest of an interrupted one."""
        for batch in self.demonstrations:
            yield self.pair(batch, self.demonstrations.batches.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The demonstrations' position, which determines the answers too."""
        return self.demonstrations.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an interrupted epoch; called when a run resumes."""
        self.demonstrations.load_state_dict(state)


def last_turn(mask: Tensor) -> Tensor:
    """Mask [B, L] of the last unbroken run of acted positions of each row."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    ends = (mask & ~following).long()
    # Number of runs that end at this position or later: 1 inside the last run.
    remaining = ends.flip(1).cumsum(1).flip(1)
    return mask & (remaining == 1)


def _widen(values: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)
