"""Pairs of responses whose log-probabilities a frozen opponent computes when a batch is taken."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.demonstrations import DemonstrationDataModule
from dpr_lightning.data.loader import BatchLoader, DemonstrationLoader
from dpr_lightning.data.policy_data import MemoryCount, PairLearner
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.engine import model_device, sequence_logprobs
from dpr_lightning.policies import FrozenPolicies, PolicySpec
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.types import DemonstrationBatch, HybridBatch, SelfPlayBatch

OPPONENT = "opponent"


class OpponentDataModule(DemonstrationDataModule):
    """Base of data that pair each demonstration with another response, and score both under a frozen opponent.

    A subclass sets ``opponent``, ``dtype`` and ``attention`` and defines :meth:`pair`.
    """

    opponent: str
    dtype: Dtype
    attention: str
    _frozen: FrozenPolicies | None = None

    @abstractmethod
    def pair(self, data: TokenizedDataset, batch: DemonstrationBatch, epoch: int) -> SelfPlayBatch:
        """Called when a batch is taken: the pairs of its demonstrations, scored.

        Args:
            data: of the demonstrations; ``batch.row`` are indices in it.
            batch: of demonstrations; a blank one has no token to learn.
            epoch: that seeds what is sampled.
        """

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the opponent; an adapter is put on the base of ``policy`` if that is its base too."""
        super().attach_policy(policy, spec, tokenizer)
        self._frozen = FrozenPolicies.load(
            {OPPONENT: self.opponent}, dtype=self.dtype, attention=self.attention, policy=policy, policy_spec=spec
        )

    def train_dataloader(self) -> BatchLoader:
        """Pairs in the random order of the demonstrations."""
        return self._paired(super().train_dataloader())

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """The pair of every validation example once, the same at every validation."""
        loader = super().val_dataloader()
        return self._paired(loader) if isinstance(loader, DemonstrationLoader) else loader

    def _paired(self, loader: BatchLoader) -> "SelfPlayLoader":
        assert isinstance(loader, DemonstrationLoader)
        return SelfPlayLoader(loader, partial(self.pair, loader.dataset))

    def opponent_logprobs(self, model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        """[2P] log-probability of each whole response under the opponent, on the CPU; 0 where nothing learns from it.

        Args:
            model: the opponent.
            tokens: [2P, L].
            mask: [2P, L] True at the tokens of the response.
        """
        if not self._scores_pairs:
            return tokens.new_zeros(len(tokens), dtype=torch.float32)
        device = model_device(model)
        return sequence_logprobs(model, tokens.to(device), mask.to(device)).sum(1).cpu()

    def count_opponent(self, count: MemoryCount, tokens: Tensor, mask: Tensor) -> None:
        """Called while memory is counted, with an opponent without content: score pairs of full length."""
        assert self._frozen is not None
        if self._scores_pairs:
            with self._frozen.use(OPPONENT) as model, count.phase("scoring pairs by the opponent"):
                sequence_logprobs(model, tokens, mask)

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
        self,
        demonstrations: DemonstrationLoader,
        pair: Callable[[DemonstrationBatch, int], SelfPlayBatch | HybridBatch],
    ) -> None:
        self.demonstrations = demonstrations
        self.pair = pair

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        return len(self.demonstrations)

    def __iter__(self) -> Iterator[SelfPlayBatch | HybridBatch]:
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


def widen(values: Tensor, width: int, fill: float) -> Tensor:
    """Rows [B, L], padded on the right to ``width``."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)
