"""Pairs of responses: SPIN and GSIL prefer demonstrations to own answers, DPO and IPO what a file prefers."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from dpr_lightning.engine import action_logits, disable_dropout
from dpr_lightning.errors import InputError
from dpr_lightning.functional import SelfPlayLoss, self_play_loss, token_logprobs
from dpr_lightning.modules.base import PolicyModule, default_optimizer
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import SelfPlayBatch


class SelfPlay(PolicyModule):
    """Learns from pairs of a chosen and a rejected response; the opponent (π_ref) is the policy it started from.

    With :class:`SelfPlayDataModule` a demonstration is chosen, and the opponent's answer rejected: one run is one
    iteration of SPIN, and the next one takes this run's policy as its start and its opponent. With
    :class:`PreferenceDataModule` both are from a file: DPO, IPO, or REBEL on rewards in the file.

    Args:
        policy: what to train.
        loss: ``spin`` (the same as ``dpo``), ``ipo``, ``rebel``, or one of GSIL's ``bernoulli``, ``brier``, ``hinge``,
            ``kliep``, ``lsif``: :func:`dpr_lightning.functional.self_play_loss`.
        scale: λ of SPIN, β of DPO, τ of IPO (there of log-ratios a token, as in TRL), η of REBEL, α of GSIL.
        shift: β of GSIL.
        check_start: at the first step, refuse to go on when the policy is not its opponent.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of an adapter initialised at random.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.

    Source: paper: Chen et al. 2024, arXiv:2401.01335; Xiao et al. 2024, arXiv:2410.10093; Rafailov et al. 2023 (DPO),
    arXiv:2305.18290; Azar et al. 2023 (IPO), arXiv:2310.12036; Gao et al. 2024 (REBEL), arXiv:2404.16767.
    """

    stage: ClassVar[str] = "self_play"
    unit = "pairs"
    reference_fractions = ()
    step_metrics: ClassVar[tuple[str, ...]] = ("train/demonstrated", "train/generated", "train/preferred")
    validation_metrics = ("validation/preferred",)
    selection_metric = ("validation/preferred", "max")

    def __init__(
        self,
        policy: PolicySpec,
        loss: SelfPlayLoss = "spin",
        scale: float = 0.1,
        shift: float = 0.0,
        check_start: bool = True,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__(policy, optimizer, schedule, seed, non_finite)
        # Refuses what is out of range before anything is loaded.
        self_play_loss(loss, torch.zeros(1), torch.zeros(1), scale, shift, torch.zeros(1))
        self.loss = loss
        self.scale, self.shift = scale, shift
        self.check_start = check_start
        self.preferred = MeanMetric()

    needs_opponent_logprob = True
    """Whether its data have to score every pair under the opponent."""

    @property
    def needs_pair_rewards(self) -> bool:
        """Whether its data have to read a reward of each response."""
        return self.loss == "rebel"

    def prepare_policy(self) -> None:
        """Turn dropout off, which would be noise in the log-ratios."""
        disable_dropout(self.policy)

    def training_step(self, batch: SelfPlayBatch, batch_idx: int) -> Tensor:
        """One micro-batch's share of the optimizer step's loss."""
        loss, sums = self.pair_step(batch, batch_idx)
        return self.log_pairs(batch, sums, loss)

    def pair_step(self, batch: SelfPlayBatch, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The pairs' share of the step's loss, and sums over pairs for the log.

        Raises:
            InputError: at the first step, the policy is not its opponent.
        """
        chosen, rejected = self.pair_scores(batch)
        if self.check_start and self.global_step == 0 and batch_idx == 0:
            magnitude = chosen.detach().abs().sum() + rejected.detach().abs().sum()
            drift = float(magnitude / batch.mask.sum().clamp_min(1))
            self.refuse_other_start(drift, "its opponent", "data.opponent")
        pairs = (
            self._rebel_loss(batch, chosen, rejected) if self.needs_pair_rewards else self.pair_loss(chosen, rejected)
        )
        sums = {
            "demonstrated": chosen.sum(),
            "generated": rejected.sum(),
            "preferred": (chosen > rejected).float().sum(),
        }
        return pairs.sum() / batch.num_pairs, sums

    def log_pairs(self, batch: SelfPlayBatch, sums: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """Log a micro-batch's sums over pairs and its loss, and return the loss for the trainer."""
        count = torch.tensor(len(batch.mask) // 2, device=loss.device)
        self.log_step(sums, count, loss, prog_bar=("preferred",))
        return self.to_step_loss(loss)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Called in each step with the scores of :meth:`pair_scores`: the loss of each pair [P]."""
        return self_play_loss(self.loss, chosen, rejected, self.scale, self.shift)

    def _rebel_loss(self, batch: SelfPlayBatch, chosen: Tensor, rejected: Tensor) -> Tensor:
        if batch.reward_gap is None:
            raise InputError(
                "`model.loss: rebel` learns differences of rewards, and these data have none. Take "
                "`PreferenceDataModule` with rows that have `chosen_reward` and `rejected_reward`, or another loss."
            )
        return self_play_loss(self.loss, chosen, rejected, self.scale, reward_gap=batch.reward_gap)

    def validation_step(self, batch: SelfPlayBatch, batch_idx: int) -> None:
        """Share of pairs whose chosen response scores above the rejected one."""
        chosen, rejected = self.pair_scores(batch)
        self.preferred.update((chosen > rejected).float(), batch.mask[: len(chosen)].any(1).float())

    def on_validation_epoch_end(self) -> None:
        """Log it over all ranks."""
        self.log("validation/preferred", self.preferred.compute(), prog_bar=True, sync_dist=False)
        self.preferred.reset()

    def pair_scores(self, batch: SelfPlayBatch) -> tuple[Tensor, Tensor]:
        """Σ_t log π_θ − log π_opponent of chosen [P] and rejected responses [P], nats; for IPO the mean over t."""
        scored = action_logits(self.policy, batch.tokens, batch.mask)
        logprob = token_logprobs(scored.logits, scored.tokens).masked_fill(~scored.mask, 0.0).sum(1)
        ratio = logprob - batch.opponent_logprob
        if self.loss == "ipo":
            ratio = ratio / scored.mask.sum(1).clamp_min(1)
        half = len(ratio) // 2
        return ratio[:half], ratio[half:]
