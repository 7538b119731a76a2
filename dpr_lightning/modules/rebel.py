"""REBEL: policy improvement as regression of differences of rewards on differences of log-ratios."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dpr_lightning.data import RolloutLoader
from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.errors import InputError
from dpr_lightning.functional import masked_sum, relative_reward_loss, win_rates
from dpr_lightning.modules.base import default_optimizer
from dpr_lightning.modules.dpr import KLSpec
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.rollout_algorithm import RolloutAlgorithm, ScoredPart
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import RolloutBatch

log = logging.getLogger(__name__)

WIDE_TARGET = 10.0
"""Nats of log-ratio that no rollout's steps reach: a larger target only scales the gradient."""
LITTLE_FITTED = 0.05
"""Share of the target below which the regression has hardly begun when its rollout ends."""


@dataclass
class RewardWeights:
    """What the reward of a response is a sum of.

    Args:
        dense_weight: what the token rewards count, summed over the response.
        outcome_weight: nats that a score of 1 is worth, where ``data.verifier`` or ``data.scorer`` gives one.
    """

    dense_weight: float = 1.0
    outcome_weight: float = 1.0


class RelativeRewardRegression(RolloutAlgorithm):
    """REBEL:  min E[(log π_θ/π_t(y) − log π_θ/π_t(y′) − η·(R(y) − R(y′)))²]  over responses y, y′ to one prompt.

    π_t is the policy that sampled the rollout. R = Σ_t [v·r̂_t − β·(log π_t − log π_SFT)_t] + w·o is computed once a
    rollout. Fitted exactly, a rollout's steps are a step of mirror descent, π_{t+1} ∝ π_t·e^{ηR}; with R = r̂ alone and
    η = 1/β, one of them ends at the optimum that ``dpr preview`` estimates for β.

    Args:
        policy: what to train; it starts as π_SFT.
        eta: η, nats of log-ratio per unit of reward.
        kl: β of the hold on π_SFT within the reward; none by default.
        credit: v and w.
        pairing: ``all`` compares all responses to a prompt with each other, ``best_worst`` the two of extreme reward.
        against: y′ is the policy's ``own`` response, or the ``demonstration`` of the prompt's row.
        reward: ``total`` is R; ``win_rate`` the mean over the prompt's other responses of σ(R − R′).
        check_start: at the first step, refuse to go on when the policy is not π_SFT or the training pass disagrees
            with the sampler.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of an adapter initialised at random.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.

    Raises:
        InputError: options that exclude each other; or at the start of training, a rollout that serves one step alone.
    Source: paper: Gao et al. 2024, arXiv:2404.16767; code: KL within the reward and π_t from the training pass, as in
        its authors' repository. Derived: the optimum, and the limit of one step. Ours: ``win_rate`` as written here.
    """

    whole_groups = True
    step_metrics = (*RolloutAlgorithm.step_metrics, "train/fitted", "rollout/target_spread")

    def __init__(
        self,
        policy: PolicySpec,
        eta: float = 1.0,
        kl: KLSpec | None = None,
        credit: RewardWeights | None = None,
        pairing: Literal["all", "best_worst"] = "all",
        against: Literal["own", "demonstration"] = "own",
        reward: Literal["total", "win_rate"] = "total",
        check_start: bool = True,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__(policy, check_start, optimizer, schedule, seed, non_finite)
        self.eta = eta
        self.kl = kl if kl is not None else KLSpec(coefficient=0.0)
        self.weights = credit if credit is not None else RewardWeights()
        self.pairing, self.against, self.reward = pairing, against, reward
        if not eta > 0:
            raise InputError(f"`model.eta` is {eta:g}: η is above 0, nats of log-ratio per unit of reward.")
        if self.kl.target is not None:
            raise InputError(
                "`model.kl.target` adapts β during training, and here β is a part of the reward that is regressed: "
                "leave it out, and choose `model.kl.coefficient`."
            )
        if against == "demonstration" and pairing == "best_worst":
            raise InputError(
                "`model.pairing: best_worst` takes both responses from the policy's own, and `model.against: "
                "demonstration` one from the rows: choose one of the two."
            )
        self._num_groups = torch.ones(())
        self._target_power = torch.ones(())
        self._warned: set[str] = set()

    @property
    def needs_demonstrations(self) -> bool:
        """Whether the last response of each group has to be the demonstration of its prompt."""
        return self.against == "demonstration"

    def learn_from(self, rollouts: RolloutLoader) -> Iterator[RolloutBatch]:
        """As for every rollout algorithm.

        Raises:
            InputError: each rollout serves one step, in which nothing is fitted.
        """
        if rollouts.refresh_every < 2:
            raise InputError(
                "`data.refresh_every` is 1: with one optimizer step a rollout nothing is regressed. Its gradient is "
                "−4η times that of leave-one-out REINFORCE on whole responses: for that use `DensePathReinforce` with "
                "`estimator: reinforce` and `credit: {level: sentence, baseline: leave_one_out}`. For REBEL set "
                "`data.refresh_every` to 2 or more; its authors' code has 4."
            )
        return super().learn_from(rollouts)

    def credit(self, rollout: RolloutBatch) -> RolloutBatch:
        """Compute η·R of each response; for ``best_worst``, select the two of each prompt with extreme rewards."""
        self._warn_if_unfitted()
        group_size = rollout.group_size
        if group_size < 2:
            raise InputError(
                f"Each prompt has {group_size} response, and rewards are compared within a prompt: set "
                "`data.samples_per_prompt` to 2 or more."
            )
        reward = self._rewards(rollout).view(-1, group_size)
        if self.reward == "win_rate":
            reward = win_rates(reward)
        rollout = rollout._replace(target=(self.eta * reward).flatten())
        if self.pairing == "best_worst" and group_size > 2:
            first = torch.arange(len(reward), device=reward.device) * group_size
            rows = torch.stack([first + reward.argmax(1), first + reward.argmin(1)], 1).flatten()
            rollout = rollout.take(rows)._replace(group_size=2)
            rollout = rollout._replace(num_tokens=sum_over_ranks(rollout.mask.sum().float()).clamp_min(1.0))
        assert rollout.target is not None
        target = rollout.target.view(-1, rollout.group_size)
        power = self._group_losses(torch.zeros_like(target), target).sum()
        totals = sum_over_ranks(torch.stack([power.double(), power.new_tensor(len(target)).double()]))
        self._num_groups = totals[1]
        self._target_power = totals[0] / totals[1]
        self._warn_if_wide()
        return rollout

    def score(self, part: RolloutBatch) -> ScoredPart:
        """Log-probabilities with the loss, and the share of the target that the policy has reached so far."""
        scored = super().score(part)
        assert part.target is not None
        start = part.behaviour_logprob if part.policy_logprob is None else part.policy_logprob
        log_ratio = masked_sum(scored.logprob - start, scored.mask, dim=1).view(-1, part.group_size)
        losses = self._group_losses(log_ratio, part.target.view_as(log_ratio))
        loss = losses.sum() / self._num_groups.to(losses)
        # Averages of the log are over tokens: this one is 1 − loss/target over all groups of the step.
        missing = loss.detach() / self._target_power.to(losses).clamp_min(torch.finfo(losses.dtype).tiny)
        fitted = (len(losses) / self._num_groups.to(losses) - missing) * part.num_tokens
        return scored._replace(loss=loss, sums={"fitted": fitted})

    def loss(self, scored: ScoredPart, part: RolloutBatch) -> Tensor:
        """The mean over the groups of the step, which :meth:`score` has computed."""
        assert scored.loss is not None
        return scored.loss

    def training_step(self, part: RolloutBatch, batch_idx: int) -> Tensor:
        """As for every rollout algorithm; logs the spread of the target."""
        loss = super().training_step(part, batch_idx)
        self.log("rollout/target_spread", self._target_power.sqrt())
        return loss

    def _rewards(self, rollout: RolloutBatch) -> Tensor:
        """R of each response [B]."""
        mask, weights = rollout.action_mask, self.weights
        start = rollout.behaviour_logprob if rollout.policy_logprob is None else rollout.policy_logprob
        tokens = weights.dense_weight * rollout.reward - self.kl.coefficient * (start - rollout.sft_logprob)
        if self.kl.reference_coefficient:
            tokens = tokens - self.kl.reference_coefficient * (start - rollout.reference_logprob)
        reward = masked_sum(tokens, mask, dim=1)
        return reward if rollout.outcome is None else reward + weights.outcome_weight * rollout.outcome

    def _group_losses(self, log_ratio: Tensor, target: Tensor) -> Tensor:
        """The loss of each group, of log-ratios and targets [G, K]; demonstrations are in the last column."""
        if self.against == "own":
            return relative_reward_loss(log_ratio, target, 1.0)
        pairs = [torch.stack([each[:, :-1], each[:, -1:].expand_as(each[:, :-1])], 2) for each in (log_ratio, target)]
        losses = relative_reward_loss(pairs[0].flatten(0, 1), pairs[1].flatten(0, 1), 1.0)
        return losses.view(len(target), -1).mean(1)

    def _record(self, rollout: RolloutBatch) -> None:
        """Log what the policy sampled: the demonstrations are left out."""
        if self.needs_demonstrations:
            number = torch.arange(len(rollout.mask), device=rollout.mask.device)
            rollout = rollout.take(number[(number + 1) % rollout.group_size != 0])
        super()._record(rollout)

    def _warn_if_wide(self) -> None:
        spread = float(self._target_power.sqrt())
        if spread > WIDE_TARGET:
            self._warn(
                "target_spread",
                f"The targets η·(R − R′) have a spread of {spread:.3g} nats, more than a rollout's steps can move a "
                "policy: η then only scales the gradient. Lower `model.eta`, or the scale of the reward.",
            )

    def _warn_if_unfitted(self) -> None:
        """Called before each rollout: the last step of the one before has logged what share it began with."""
        fitted = None if self._trainer is None else self.trainer.callback_metrics.get("train/fitted")
        if self.rollout_count and fitted is not None and float(fitted) < LITTLE_FITTED:
            self._warn(
                "fitted",
                f"Before the last step of a rollout {float(fitted):.1%} of the reward's differences were fitted, so "
                "that the run is close to a policy gradient. Raise the learning rate or `data.refresh_every`.",
            )

    def _warn(self, reason: str, message: str) -> None:
        """Log a warning once a run, on rank 0."""
        if reason not in self._warned and (self._trainer is None or self.trainer.is_global_zero):
            self._warned.add(reason)
            log.warning("%s", message)
