"""The contracts between data and the module that learns from them."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.row_types import RowSource
from dpr_lightning.data.rows import Rows
from dpr_lightning.errors import shorten_traceback
from dpr_lightning.policies import FrozenPolicies, PolicySpec, Weights
from dpr_lightning.policies.policy_spec import Dtype


@runtime_checkable
class ConfiguredLearner(Protocol):
    """A module whose policy is configured; data read this before the policy is built."""

    policy_spec: PolicySpec


@runtime_checkable
class PairLearner(Protocol):
    """A module that learns from pairs of responses.

    ``needs_opponent_logprob``: whether batches need the log-probabilities of both under the opponent;
    ``needs_pair_rewards``: whether they need the difference of their rewards.
    """

    needs_opponent_logprob: bool
    needs_pair_rewards: bool


class Learner(Protocol):
    """A module with a policy that is built."""

    policy: nn.Module
    policy_spec: PolicySpec
    tokenizer: PreTrainedTokenizerBase

    def policy_for_inference(self) -> AbstractContextManager[nn.Module]:
        """The policy to sample from or to score with; all ranks enter."""
        ...


@runtime_checkable
class PausingLoader(Protocol):
    """A training loader with steps between which no checkpoint can be written.

    ``resumable``: whether one can be written after the batch that was yielded last.
    """

    resumable: bool


class MemoryCount(Protocol):
    """Records what parts of a run take while its memory is counted.

    ``ranks``: of the run that is counted.
    """

    ranks: int

    def frozen_models(
        self, folders: Mapping[str, str], dtype: Dtype, attention: str, weights: Weights = "whole"
    ) -> FrozenPolicies:
        """Called in place of :meth:`FrozenPolicies.load`: models without content, whose weights stay for the run."""
        ...

    def frozen_head(self, dtype: Dtype) -> nn.Module:
        """Called in place of :func:`load_verifier_head`: a head on the trunk of the policy, without content."""
        ...

    def phase(self, name: str) -> AbstractContextManager[None]:
        """What is allocated inside at once is a phase of the run; of phases of one name, the largest."""
        ...


class PolicyDataModule(LightningDataModule):
    """Base of data that a PolicyModule learns from. The defaults do nothing.

    Attributes:
        held_out_file: file for the rows that the data hold out; ``dpr fit`` sets one where the config names none and
            :meth:`splits_off_rows` is True.
    """

    held_out_file: str | None = None

    @classmethod
    def splits_off_rows(cls, options: Mapping[str, Any]) -> bool:
        """Whether data with these options hold rows out of those to learn from; called before they are created."""
        return False

    def attach_policy(self, policy: nn.Module, spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Called once the policy is built and before it is cut into shards, on every rank.

        Args:
            policy: in training; its generation configuration may be changed.
            spec: what it was built from.
            tokenizer: saved with the policy; its chat template may be changed.
        """

    def where(self, row: int) -> str:
        """``file:number`` of a training row, by its index; called to name a row in a message."""
        return str(row)

    def held_out_rows(self) -> tuple[Rows | RowSource, dict[str, str] | None] | None:
        """Rows that the run does not learn from and that callbacks evaluate, with the names of their columns.

        Called after ``setup``. None: there are none.
        """
        return None

    def learnt_prompt_hashes(self) -> NDArray[np.int64]:
        """[N] hashes of the prompts that the run learns from; called after ``setup`` to warn of an evaluation on them.

        None are known: empty.
        """
        return np.zeros(0, dtype=np.int64)

    def manifest_entry(self) -> dict[str, Any]:
        """Plain values for ``run.json``, once the data are read: later commands take their options from them."""
        return {}

    def on_exception(self, exception: BaseException) -> None:
        """Called by the trainer when a run fails."""
        shorten_traceback(exception)

    def split_micro_batches(self, parts: int) -> None:
        """Called before training where memory ran out: cut each micro-batch into ``parts``, in the same order.

        The trainer accumulates over all of them; what a step learns from must not change.

        Raises:
            NotImplementedError: these data cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define split_micro_batches.")

    def counted_batches(self, count: MemoryCount) -> Iterable[Any]:
        """Called by ``dpr plan`` in place of ``train_dataloader``, once the policy is built without content.

        No file is read. The trainer is attached, and has a single rank.

        Args:
            count: takes down frozen models, and phases such as sampling and scoring.

        Returns:
            micro-batches of two optimizer steps, as large as the options allow: with a length, and the work of the
            phases done when the first is taken. Their integers have content, and only those.

        Raises:
            NotImplementedError: these data cannot be counted.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define counted_batches.")
