"""A verifier trained on what SFT was trained on: demonstrations preferred to the policy's own answers."""

from typing import ClassVar

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.errors import InputError
from dpr_lightning.modules.base import default_optimizer
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.modules.self_play import SelfPlay
from dpr_lightning.policies import PolicySpec, build_verifier_head, response_scores
from dpr_lightning.policies.outline import outline_verifier_head
from dpr_lightning.types import SelfPlayBatch


class VerifierHead(SelfPlay):
    """The Bradley–Terry model of a demonstration being preferred to an answer:  −log σ(s(demonstration) − s(answer)).

    The control for a dense reward: as much is known to both, and this one is a separate model. The folder it leaves
    is an ``AutoModelForSequenceClassification``, which other programs take as a reward model.

    Args:
        policy: folder of π_SFT, whose trunk is trained with a new head.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of the run.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.

    Source: Bradley & Terry 1952; as a reward model Ouyang et al. 2022, arXiv:2203.02155.
    """

    stage: ClassVar[str] = "verifier_head"

    def __init__(
        self,
        policy: PolicySpec,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        # SPIN's logistic loss, of scores instead of log-ratios.
        super().__init__(policy, "spin", 1.0, 0.0, False, optimizer, schedule, seed, non_finite)

    needs_opponent_logprob = False

    def on_fit_start(self) -> None:
        """Nothing is sampled from what gives scores."""

    def build(self) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """π_SFT's trunk with a head of one output."""
        model, tokenizer = build_verifier_head(self.policy_spec)
        return model.train(), tokenizer

    def outline(self) -> nn.Module:
        """As :meth:`build`, without weights."""
        return outline_verifier_head(self.policy_spec)

    def prepare_policy(self) -> None:
        """Turn dropout off.

        Raises:
            InputError: the strategy gathers weights where the whole model is called, and the trunk alone is.
        """
        if self._trainer is not None and self.policy_strategy.shards_layers:
            raise InputError(
                "A verifier head is trained under `ddp` or ZeRO, not under FSDP2: choose another `trainer.strategy`, "
                "such as the overlay configs/strategy/zero3.yaml."
            )
        super().prepare_policy()

    def pair_scores(self, batch: SelfPlayBatch) -> tuple[Tensor, Tensor]:
        """The head's numbers for demonstrations [P] and answers [P]."""
        scores = response_scores(self.policy, batch.tokens, batch.mask)
        half = len(scores) // 2
        return scores[:half], scores[half:]
