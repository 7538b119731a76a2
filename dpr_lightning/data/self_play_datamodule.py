"""Demonstrations beside an opponent's own answers to the same prompts: what SPIN and GSIL learn from."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.demonstrations import DemonstrationDataModule
from dpr_lightning.data.loader import DemonstrationLoader
from dpr_lightning.data.rows import Rows
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.engine import model_device, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies import AUTO, FrozenPolicies, PolicySpec, special_tokens
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.types import DemonstrationBatch, SelfPlayBatch

OPPONENT = "opponent"


class SelfPlayDataModule(DemonstrationDataModule):
    """Demonstrations, each paired with an answer of a frozen opponent, drawn anew every epoch.

    Of a conversation of several turns the last one alone counts: it is what the opponent answers.

    Args:
        train: as for :class:`DemonstrationDataModule`.
        opponent: folder of the policy whose answers are told from demonstrations: the one that training starts from.
        sampling: how it answers.
        dtype: of its parameters.
        attention: its attention implementation.
        options: everything else that :class:`DemonstrationDataModule` takes; a token budget counts demonstrations.

    Raises:
        InputError: as there; or the opponent samples at temperature 0.
    """

    def __init__(
        self,
        train: Rows,
        opponent: ReadPath,
        sampling: SamplingOptions | None = None,
        dtype: str = "float32",
        attention: str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__(train, **options)
        self.opponent = opponent
        self.sampling = sampling if sampling is not None else SamplingOptions()
        if self.sampling.temperature == 0:
            raise InputError("The opponent's answers are samples: set `data.sampling.temperature` to 1.")
        self.dtype, self.attention = dtype, attention
        self._frozen: FrozenPolicies | None = None

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the opponent; an adapter goes on the base of ``policy`` when it has the same one."""
        super().attach_policy(policy, spec, tokenizer)
        self._frozen = FrozenPolicies.load(
            {OPPONENT: self.opponent}, dtype=self.dtype, attention=self.attention, policy=policy, policy_spec=spec
        )

    def train_dataloader(self) -> "SelfPlayLoader":  # type: ignore[override]
        """Pairs in the random order of the demonstrations."""
        return SelfPlayLoader(super().train_dataloader(), self.pair)

    def val_dataloader(self) -> "SelfPlayLoader | list[Any]":  # type: ignore[override]
        """Every validation example once, with an answer that is the same at every validation."""
        loader = super().val_dataloader()
        return SelfPlayLoader(loader, self.pair) if isinstance(loader, DemonstrationLoader) else loader

    def pair(self, batch: DemonstrationBatch, epoch: int) -> SelfPlayBatch:
        """Add the opponent's answers and its log-probabilities of both."""
        assert self._frozen is not None
        if self.trainer is not None:
            self._frozen.to(self.trainer.strategy.root_device)
        turn = last_turn(batch.mask)
        # A row that only keeps a rank company has no turn; its answer counts nothing either.
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
                held = sequence_logprobs(model, tokens.to(model_device(model)), mask.to(model_device(model)))
                logprob = held.sum(1).cpu()
            else:
                logprob = torch.zeros(len(tokens))
        # The sampler of the base class counts one for each example, so a step's "tokens" are its pairs.
        return SelfPlayBatch(tokens, mask, logprob, batch.num_tokens)

    @property
    def _scores_pairs(self) -> bool:
        """Whether the module that learns measures itself against the opponent; without a trainer, yes."""
        return self.trainer is None or getattr(self.trainer.lightning_module, "needs_opponent_logprob", True)

    def _counted(self, data: TokenizedDataset) -> NDArray[np.int64]:
        return np.ones_like(data.acted_tokens)


class SelfPlayLoader:
    """A loader of demonstrations whose batches are paired with answers when they are asked for.

    Args:
        demonstrations: keeps order and position.
        pair: makes pairs of a batch; takes the epoch, which seeds the answers.
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
        """The next epoch, or what is left of an interrupted one."""
        for batch in self.demonstrations:
            yield self.pair(batch, self.demonstrations.batches.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The demonstrations' position; answers follow from it."""
        return self.demonstrations.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an interrupted epoch."""
        self.demonstrations.load_state_dict(state)


def last_turn(mask: Tensor) -> Tensor:
    """Of the acted positions [B, L], those of the last unbroken run of each row."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    ends = (mask & ~following).long()
    # How many runs end here or later: 1 inside the last.
    remaining = ends.flip(1).cumsum(1).flip(1)
    return mask & (remaining == 1)


def _widen(values: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)
