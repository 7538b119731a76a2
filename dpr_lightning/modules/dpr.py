"""Dense-Path REINFORCE: a short, critic-free policy-gradient phase on the recovered token reward."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.engine import Part, acted_loss
from dpr_lightning.errors import InputError
from dpr_lightning.functional import (
    bound_unlikelihood,
    clipped_surrogate_loss,
    masked_sum,
    truncated_importance,
)
from dpr_lightning.modules.advantages import CreditSpec, estimate_advantages
from dpr_lightning.modules.base import default_optimizer
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.rollout_algorithm import RolloutAlgorithm, ScoredPart
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import RolloutBatch


@dataclass
class KLSpec:
    """How the policy is held near π_SFT.

    Args:
        coefficient: β, nats of reward per nat of KL(π_θ‖π_SFT). The default is of the recommended reward. 1/β is the
            extrapolation strength of the optimum π* ∝ π_SFT·(π_SFT/π_ref)^{1/β} of the published reward, ``log_ratio``;
            β well below 1 destroys policies under it.
        target: nats a token at which an adaptive β aims; None keeps β fixed.
        horizon: rollouts over which a fully missed target multiplies or divides β by e. After Ziegler et al. 2019.
        reference_coefficient: nats of reward per nat of KL(π_θ‖π_ref), a second, small hold; 0 is none.
    """

    coefficient: float = 0.25
    target: float | None = None
    horizon: int = 50
    reference_coefficient: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.coefficient < 0 or self.reference_coefficient < 0:
            raise InputError("`kl.coefficient` (β) and `kl.reference_coefficient` must not be negative.")
        if (self.target is not None and self.target <= 0) or self.horizon < 1:
            raise InputError(
                f"`kl.target` must be above 0 and `kl.horizon` at least 1; found {self.target} and {self.horizon}."
            )


class DensePathReinforce(RolloutAlgorithm):
    """Improves a policy on its token reward:  ∇J = E Σ_t ∇log π_θ(a_t|s_t)·(G_t − b_t).

    The defaults are those of the recipes in ``configs/``. The published estimator is
    ``DensePathReinforce(policy, "reinforce", CreditSpec(discount=1.0, baseline="leave_one_out"), KLSpec(1.0))``.

    Args:
        policy: what to train; it starts as π_SFT.
        estimator: ``all_actions`` differentiates the immediate term exactly over the vocabulary and samples only the
            future (none at discount 0); ``reinforce`` samples everything.
        credit: discount, baseline, whitening, tokens or sentences.
        kl: the hold on π_SFT.
        clip_range: ε of the ratio clip for rollouts used more than once, or drawn ahead; at ratio 1 it changes nothing.
        improbable_floor: probability below which a negative advantage is scaled by π/floor, so that pushing down a
            token the policy already finds improbable fades instead of blowing up.
        check_start: at the first step, refuse to go on when the policy is not π_SFT or the training pass disagrees
            with the sampler.
        importance_cap: C; where another program writes the answers (``data.sampler``), the advantage of each of their
            tokens is multiplied by min(π(a|s)/b(a|s), C), for b, which drew it, is not quite the policy π. The exact
            immediate term of ``all_actions`` samples no token, and takes the states as they are.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of an adapter initialised at random.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.

    Source: Li et al. 2025, arXiv:2510.02493 (undiscounted, critic-free, token rewards, KL to π_SFT); ``all_actions``,
    ``improbable_floor`` are ours.
    """

    step_metrics = (
        *RolloutAlgorithm.step_metrics,
        *("train/clip_share", "train/kl_coefficient", "rollout/importance_truncated"),
    )

    def __init__(
        self,
        policy: PolicySpec,
        estimator: Literal["reinforce", "all_actions"] = "all_actions",
        credit: CreditSpec | None = None,
        kl: KLSpec | None = None,
        clip_range: float = 0.2,
        improbable_floor: float = 1e-4,
        check_start: bool = True,
        importance_cap: float = 2.0,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__(policy, check_start, optimizer, schedule, seed, non_finite)
        self.estimator = estimator
        self.credit_spec = credit if credit is not None else CreditSpec()
        self.kl = kl if kl is not None else KLSpec()
        self.clip_range = clip_range
        self.improbable_floor = improbable_floor
        self.importance_cap = importance_cap
        if importance_cap <= 0:
            raise InputError(f"`importance_cap` must be above 0; found {importance_cap}.")
        if estimator not in ("reinforce", "all_actions"):
            raise InputError(f"There is no estimator {estimator!r}; they are reinforce and all_actions.")
        if estimator == "all_actions" and self.credit_spec.level != "token":
            raise InputError(
                "The all-actions estimator needs token rewards; `credit.level: sentence` has none. Set "
                "`model.estimator: reinforce`, or `model.credit.level: token`."
            )
        if estimator == "all_actions" and self.credit_spec.whiten and self.credit_spec.discount > 0:
            raise InputError(
                "`credit.whiten` would change the scale of the sampled future alone, and so its weight against the "
                "exact immediate term. Turn it off, or use `estimator: reinforce` or `discount: 0`."
            )
        # A number and not a buffer: small changes of β would be lost in a module that is held in bfloat16.
        self.kl_coefficient = self.kl.coefficient

    @property
    def needs_action_rewards(self) -> bool:
        """Whether micro-batches must have the reward of every token of the vocabulary."""
        return self.estimator == "all_actions"

    def credit(self, rollout: RolloutBatch) -> RolloutBatch:
        """Fill in the advantages, with one β for them and for every micro-batch."""
        mask = rollout.action_mask
        self._adapt_kl_coefficient(rollout, mask)
        advantage = estimate_advantages(
            rollout,
            mask,
            self.credit_spec,
            kl_coefficient=self.kl_coefficient,
            reference_coefficient=self.kl.reference_coefficient,
            group_size=rollout.group_size,
            future_only=self.needs_action_rewards,
            policy_logprob=rollout.policy_logprob,
        )
        if rollout.sampler_logprob is not None:
            logprobs = (rollout.behaviour_logprob, rollout.sampler_logprob)
            advantage = advantage * truncated_importance(*logprobs, mask, self.importance_cap)
        return rollout._replace(advantage=advantage)

    def training_step(self, part: RolloutBatch, batch_idx: int) -> Tensor:
        """As for every rollout algorithm; logs β."""
        loss = super().training_step(part, batch_idx)
        self.log("train/kl_coefficient", self.kl_coefficient)
        return loss

    def score(self, part: RolloutBatch) -> ScoredPart:
        """The policy's log-probabilities with the loss, which the output head computes a block of logits at a time."""
        surrogate = _Surrogate(part, self.improbable_floor, self.clip_range)
        values = _ImmediateValues(self, part) if self.needs_action_rewards else None
        scored = acted_loss(self.policy, part.tokens, part.mask, surrogate, values, sampled=True)
        sums = {"clip_share": surrogate.clipped}
        return ScoredPart(scored.logprob, scored.entropy, scored.mask, scored.loss, sums)

    def loss(self, scored: ScoredPart, part: RolloutBatch) -> Tensor:
        """The clipped surrogate, and the exact immediate term of ``all_actions``, which :meth:`score` has computed."""
        assert scored.loss is not None
        return scored.loss

    def sampler_sums(self, rollout: RolloutBatch) -> Mapping[str, Tensor]:
        """Add the share of tokens whose importance weight was truncated."""
        sums = super().sampler_sums(rollout)
        if rollout.sampler_logprob is None:
            return sums
        gap = rollout.behaviour_logprob - rollout.sampler_logprob
        return {**sums, "importance_truncated": (rollout.action_mask & (gap > math.log(self.importance_cap))).sum()}

    def _adapt_kl_coefficient(self, rollout: RolloutBatch, mask: Tensor) -> None:
        """Raise β when the rollout is further from π_SFT than the target, lower it when it is nearer."""
        if self.kl.target is None:
            return
        if rollout.policy_logprob is not None:
            raise InputError(
                "An adaptive β measures KL(π_θ‖π_SFT) on samples of π_θ itself. Precomputed rollouts, or a sampling "
                "temperature or top_p other than 1, give none: leave `kl.target` out."
            )
        drift = masked_sum(rollout.behaviour_logprob - rollout.sft_logprob, mask)
        total, tokens = sum_over_ranks(torch.stack([drift, mask.sum().to(drift)]))
        if not total.isfinite():
            return  # the step will be left out, and β must not be lost with it
        error = float((total / tokens.clamp_min(1.0) / self.kl.target - 1.0).clamp(-1.0, 1.0))
        self.kl_coefficient *= math.exp(error / self.kl.horizon)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save an adaptive β."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_coefficient"] = self.kl_coefficient

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the β of the interrupted run."""
        super().on_load_checkpoint(checkpoint)
        self.kl_coefficient = float(checkpoint.get("kl_coefficient", self.kl_coefficient))


class _ImmediateValues:
    """[r(s,a) − β·log(π_θ/π_SFT)(a|s)] / N of every token; called with log π_θ of some states after the others."""

    def __init__(self, module: DensePathReinforce, batch: RolloutBatch) -> None:
        assert batch.actions is not None
        self._actions, self._num_tokens = batch.actions, batch.num_tokens
        self._index = batch.action_mask.flatten().nonzero().squeeze(1)
        self._dense_weight, self._hold = module.credit_spec.dense_weight, module.kl_coefficient
        self._reference_hold = module.kl.reference_coefficient

    def __call__(self, logprobs: Tensor, part: slice) -> Tensor:
        """The values [n, V] of these states."""
        scores = self._actions.scores(self._index[part])
        value = self._dense_weight * scores.reward - self._hold * (logprobs - scores.sft_logprob)
        if self._reference_hold:
            value = value - self._reference_hold * (logprobs - scores.reference_logprob)
        return value / self._num_tokens


class _Surrogate:
    """The loss of sampled tokens, called with the log-probabilities of some of them after the others.

    Attributes:
        clipped: how many of those tokens lost their gradient to the clip.
    """

    def __init__(self, batch: RolloutBatch, improbable_floor: float, clip_range: float) -> None:
        mask = batch.action_mask
        self._advantage, self._behaviour = batch.advantage[mask], batch.behaviour_logprob[mask]
        self._num_tokens = batch.num_tokens
        self._floor, self._clip_range = improbable_floor, clip_range
        self.clipped = torch.zeros((), device=batch.advantage.device)

    def __call__(self, logprob: Tensor, part: Part) -> Tensor:
        """The sum of these tokens' losses."""
        advantage = bound_unlikelihood(self._advantage[part.rows], logprob, self._floor)
        every = torch.ones_like(logprob, dtype=torch.bool).unsqueeze(0)
        parts = (logprob.unsqueeze(0), self._behaviour[part.rows].unsqueeze(0), advantage.unsqueeze(0))
        loss, share = clipped_surrogate_loss(*parts, every, self._num_tokens, self._clip_range)
        self.clipped = self.clipped + share * len(logprob)
        return loss
