"""Dense-Path REINFORCE: a short, critic-free policy-gradient phase on the recovered token reward."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.engine import acted_loss, disable_dropout
from dpr_lightning.errors import InputError
from dpr_lightning.functional import (
    bound_unlikelihood,
    clipped_surrogate_loss,
    masked_mean,
    masked_sum,
    truncated_importance,
)
from dpr_lightning.modules.advantages import CreditSpec, estimate_advantages
from dpr_lightning.modules.base import PolicyModule, default_optimizer
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import RolloutBatch


@dataclass
class KLSpec:
    """How the policy is held near π_SFT.

    Args:
        coefficient: β, nats of reward per nat of KL(π_θ‖π_SFT). 1/β is the extrapolation strength of the optimum
            π* ∝ π_SFT·(π_SFT/π_ref)^{1/β} of the published reward; β well below 1 destroys policies under it.
        target: nats a token at which an adaptive β aims; None keeps β fixed.
        horizon: rollouts over which a fully missed target multiplies or divides β by e. After Ziegler et al. 2019.
        reference_coefficient: nats of reward per nat of KL(π_θ‖π_ref), a second, small hold; 0 is none.
    """

    coefficient: float = 1.0
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


SAMPLER_TOLERANCE = 0.1
"""Nats a token by which another program that samples may differ from the policy at first."""


class DensePathReinforce(PolicyModule):
    """Improves a policy on its token reward:  ∇J = E Σ_t ∇log π_θ(a_t|s_t)·(G_t − b_t).

    Args:
        policy: what to train; it starts as π_SFT.
        estimator: ``reinforce`` samples everything; ``all_actions`` differentiates the immediate term exactly over the
            vocabulary and samples only the future (none at discount 0).
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
        *(f"train/{name}" for name in ("entropy", "clip_share", "ratio", "kl_to_sft", "kl_coefficient")),
        *(f"rollout/{name}" for name in ("length", "reward", "reward_per_token", "terminated", "outcome")),
        *(f"rollout/{name}" for name in ("reverse_kl", "sampler_gap", "importance_truncated", "verifier")),
        *("reward", "kl"),
    )

    def __init__(
        self,
        policy: PolicySpec,
        estimator: Literal["reinforce", "all_actions"] = "reinforce",
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
        super().__init__(policy, optimizer, schedule, seed, non_finite)
        self.estimator = estimator
        self.credit = credit if credit is not None else CreditSpec()
        self.kl = kl if kl is not None else KLSpec()
        self.clip_range = clip_range
        self.improbable_floor = improbable_floor
        self.check_start = check_start
        self.importance_cap = importance_cap
        if importance_cap <= 0:
            raise InputError(f"`importance_cap` must be above 0; found {importance_cap}.")
        if estimator not in ("reinforce", "all_actions"):
            raise InputError(f"There is no estimator {estimator!r}; they are reinforce and all_actions.")
        if estimator == "all_actions" and self.credit.level != "token":
            raise InputError("The all-actions estimator needs token rewards; `credit.level: sentence` has none.")
        if estimator == "all_actions" and self.credit.whiten and self.credit.discount > 0:
            raise InputError(
                "`credit.whiten` would change the scale of the sampled future alone, and so its weight against the "
                "exact immediate term. Turn it off, or use `estimator: reinforce` or `discount: 0`."
            )
        # A number and not a buffer: small changes of β would be lost in a module that is held in bfloat16.
        self.kl_coefficient = self.kl.coefficient
        self.last_rollout: RolloutBatch | None = None
        self.rollout_count = 0
        self._logged_rollouts = 0
        self._on_policy = True
        self._looks_at_sampler = True

    @property
    def needs_action_rewards(self) -> bool:
        """Whether batches must carry the reward of every token of the vocabulary."""
        return self.estimator == "all_actions"

    def prepare_policy(self) -> None:
        """Turn dropout off, which would be noise in the ratio to the policy that sampled."""
        disable_dropout(self.policy)

    def prepare_rollout(
        self, rollout: RolloutBatch, group_size: int, policy_logprob: Tensor | None = None
    ) -> RolloutBatch:
        """Fill in the advantages of a whole rollout, before it is cut into micro-batches.

        Args:
            rollout: this rank's share.
            group_size: K samples a prompt, next to each other.
            policy_logprob: log π_θ of its tokens where another distribution than π_θ drew them.
        """
        mask = _action_mask(rollout)
        self._on_policy = policy_logprob is None
        # Before anything uses β, so that one β holds for the advantages and for every micro-batch.
        self._adapt_kl_coefficient(rollout, mask)
        advantage = estimate_advantages(
            rollout,
            mask,
            self.credit,
            kl_coefficient=self.kl_coefficient,
            reference_coefficient=self.kl.reference_coefficient,
            group_size=group_size,
            future_only=self.needs_action_rewards,
            policy_logprob=policy_logprob,
        )
        if rollout.sampler_logprob is not None:
            drawn = (rollout.behaviour_logprob, rollout.sampler_logprob)
            advantage = advantage * truncated_importance(*drawn, mask, self.importance_cap)
        kept = rollout._replace(advantage=advantage)
        # The scores of every token would stay in memory until the next rollout is scored.
        self.last_rollout = kept._replace(actions=None)
        self.rollout_count += 1
        return kept

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """One micro-batch's share of the optimizer step's loss."""
        surrogate = _Surrogate(batch, self.improbable_floor, self.clip_range)
        values = _ImmediateValues(self, batch) if self.needs_action_rewards else None
        scored = acted_loss(self.policy, batch.tokens, batch.mask, surrogate, values, sampled=True)
        loss, logprob, mask = scored.loss, scored.logprob, scored.mask
        if self.check_start and self.global_step == 0 and batch_idx == 0:
            self._check_start(batch, logprob, mask)
        if self.check_start:
            self._check_sampler(batch, mask)
        self.non_finite.watch(
            batch.prompt,
            {
                "log_probability": logprob,
                "reward": batch.reward,
                "advantage": batch.advantage,
                "sft_log_probability": batch.sft_logprob,
            },
            mask,
        )
        self.log_step(
            {
                "entropy": masked_sum(scored.entropy, mask),
                "clip_share": surrogate.clipped,
                "ratio": masked_sum((logprob - batch.behaviour_logprob).exp(), mask),
                "kl_to_sft": masked_sum(logprob - batch.sft_logprob, mask),
            },
            mask.sum(),
            loss,
        )
        self.log("train/kl_coefficient", self.kl_coefficient)
        self._log_rollout()
        return self.to_step_loss(loss)

    def _adapt_kl_coefficient(self, rollout: RolloutBatch, mask: Tensor) -> None:
        """Raise β when the rollout is further from π_SFT than the target, lower it when it is nearer."""
        if self.kl.target is None:
            return
        if not self._on_policy:
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
        """An adaptive β and the number of rollouts are part of a checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_coefficient"] = self.kl_coefficient
        checkpoint["rollouts"] = self.rollout_count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the β of the interrupted run."""
        super().on_load_checkpoint(checkpoint)
        self.kl_coefficient = float(checkpoint.get("kl_coefficient", self.kl_coefficient))
        self.rollout_count = self._logged_rollouts = int(checkpoint.get("rollouts", 0))

    def _log_rollout(self) -> None:
        """Averages over a whole rollout and all ranks, logged once when it is new."""
        rollout = self.last_rollout
        if rollout is None or self.rollout_count == self._logged_rollouts:
            return
        self._logged_rollouts = self.rollout_count
        mask = _action_mask(rollout)
        sums = {
            "sequences": torch.tensor(len(mask)),
            "length": mask.sum(),
            "reward": masked_sum(rollout.reward, mask),
            "terminated": rollout.terminated.sum(),
        }
        if rollout.outcome is not None:
            sums["outcome"] = rollout.outcome.sum()
        if rollout.sampler_logprob is not None:
            gap = rollout.behaviour_logprob - rollout.sampler_logprob
            sums["sampler_gap"] = masked_sum(gap.abs(), mask)
            sums["importance_truncated"] = (mask & (gap > math.log(self.importance_cap))).sum()
        if self._on_policy:
            # Only samples of π_θ (drawn ahead: of an earlier one) estimate KL(π_θ‖π_SFT), in nats a response.
            sums["reverse_kl"] = masked_sum(rollout.behaviour_logprob - rollout.sft_logprob, mask)
        total = sum_over_ranks(torch.stack([value.double().to(self.device) for value in sums.values()]))
        sequences, tokens, reward = total[0], total[1], total[2]
        averages = dict(zip(sums, total / sequences, strict=True))
        del averages["sequences"]
        for name in {"sampler_gap", "importance_truncated"} & averages.keys():
            averages[name] = averages[name] * sequences / tokens.clamp_min(1)  # of a token
        self.log_dict({f"rollout/{name}": value for name, value in averages.items()})
        self.log("rollout/reward_per_token", reward / tokens.clamp_min(1))
        shown = {"reward": averages["reward"], "kl": averages.get("reverse_kl")}
        self.log_dict({name: value for name, value in shown.items() if value is not None}, prog_bar=True, logger=False)

    def _check_start(self, batch: RolloutBatch, logprob: Tensor, mask: Tensor) -> None:
        """At the first step the policy is π_SFT and the rollout is its own: KL ≈ 0 and ratio ≈ 1.

        Raises:
            InputError: they are not; says which and what usually causes it.
        """
        to_sft = float(masked_mean((logprob - batch.sft_logprob).abs(), mask))
        to_behaviour = float(masked_mean((logprob - batch.behaviour_logprob).abs(), mask))
        self.refuse_other_start(to_sft, "π_SFT", "data.sft")
        if to_behaviour > self.start_tolerance:
            raise InputError(
                f"The training pass and the sampler disagree by {to_behaviour:.3g} nats a token (allowed: "
                f"{self.start_tolerance}), so the importance ratio is not 1 at the first step. Likely causes: a "
                "sampling temperature or top_p other than 1, dropout left on, or rollouts kept from another policy. "
                "`check_start: false` goes on with the ratio as correction."
            )

    def _check_sampler(self, batch: RolloutBatch, mask: Tensor) -> None:
        """What another program draws tokens with is near the policy's log-probabilities; looked at once a process.

        Raises:
            InputError: it is not.
        """
        asked, self._looks_at_sampler = self._looks_at_sampler, False
        # At another temperature, or from a nucleus, they differ as they should.
        if batch.sampler_logprob is None or not asked or not self._on_policy:
            return
        gap = float(masked_mean((batch.behaviour_logprob - batch.sampler_logprob).abs(), mask))
        if not gap <= SAMPLER_TOLERANCE:
            raise InputError(
                f"The policy and the program that writes its answers (`data.sampler`) disagree by {gap:.3g} nats a "
                f"token (allowed: {SAMPLER_TOLERANCE}). It may not have taken the policy's weights, reads its config "
                "otherwise, or computes in too few bits. `check_start: false` goes on, with weights for its tokens."
            )


class _ImmediateValues:
    """[r(s,a) − β·log(π_θ/π_SFT)(a|s)] / N of every token; called with log π_θ of some states after the others."""

    def __init__(self, module: DensePathReinforce, batch: RolloutBatch) -> None:
        assert batch.actions is not None
        self._actions, self._num_tokens = batch.actions, batch.num_tokens
        self._place = _action_mask(batch).flatten().nonzero().squeeze(1)
        self._dense_weight, self._hold = module.credit.dense_weight, module.kl_coefficient
        self._reference_hold = module.kl.reference_coefficient

    def __call__(self, logprobs: Tensor, part: slice) -> Tensor:
        """The values [n, V] of these states."""
        scores = self._actions.scores(self._place[part])
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
        mask = _action_mask(batch)
        self._advantage, self._behaviour = batch.advantage[mask], batch.behaviour_logprob[mask]
        self._num_tokens = batch.num_tokens
        self._floor, self._clip_range = improbable_floor, clip_range
        self.clipped = torch.zeros((), device=batch.advantage.device)

    def __call__(self, logprob: Tensor, part: slice) -> Tensor:
        """The sum of these tokens' losses."""
        advantage = bound_unlikelihood(self._advantage[part], logprob, self._floor)
        every = torch.ones_like(logprob, dtype=torch.bool).unsqueeze(0)
        parts = (logprob.unsqueeze(0), self._behaviour[part].unsqueeze(0), advantage.unsqueeze(0))
        loss, share = clipped_surrogate_loss(*parts, every, self._num_tokens, self._clip_range)
        self.clipped = self.clipped + share * len(logprob)
        return loss


def _action_mask(rollout: RolloutBatch) -> Tensor:
    width = rollout.reward.shape[1]
    return torch.arange(width, device=rollout.mask.device) < rollout.mask.sum(1, keepdim=True)
