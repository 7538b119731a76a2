"""The loop of every algorithm that learns from samples of its policy: sample, score, credit, loss, step."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dpr_lightning.data import RolloutLoader
from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.engine import ActionLogits, disable_dropout, sampled_logits
from dpr_lightning.errors import InputError
from dpr_lightning.functional import entropy, masked_mean, masked_sum, token_logprobs
from dpr_lightning.modules.base import PolicyModule, default_optimizer
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import RolloutBatch

SAMPLER_TOLERANCE = 0.1
"""Nats a token by which another program that samples may differ from the policy at first."""


class ScoredPart(NamedTuple):
    """A micro-batch under the policy in training, action-aligned [B, T].

    ``logprob`` and ``entropy``: nats, 0 outside ``mask``. ``loss`` []: for algorithms whose own ``score`` computes it
    while the logits exist; the two before carry no gradient then. ``sums``: more for the log, over the part's tokens.
    """

    logprob: Tensor
    entropy: Tensor
    mask: Tensor
    loss: Tensor | None = None
    sums: Mapping[str, Tensor] = {}


def score_logits(actions: ActionLogits) -> ScoredPart:
    """Log-probabilities and entropies of the acted tokens, in at least float32."""
    logits = actions.logits.to(torch.promote_types(actions.logits.dtype, torch.float32))
    logprob = token_logprobs(logits, actions.tokens).masked_fill(~actions.mask, 0.0)
    return ScoredPart(logprob, entropy(logits.log_softmax(-1)).masked_fill(~actions.mask, 0.0), actions.mask)


class RolloutAlgorithm(PolicyModule):
    """Learns from rollouts: responses that the policy samples and :class:`RewardDataModule` scores.

    :meth:`learn_from` and :meth:`training_step` are the loop. A subclass defines :meth:`credit` and :meth:`loss`.

    Args:
        policy: what to train.
        check_start: at the first step, refuse to go on when the policy is not π_SFT or the training pass disagrees
            with the sampler.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of an adapter initialised at random.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.
    """

    stage: ClassVar[str] = "rl"
    whole_groups: ClassVar[bool] = False
    """Whether the loss compares the responses to one prompt, so that micro-batches must not separate them."""
    reference_fractions = ()
    step_metrics = (
        *(f"train/{name}" for name in ("entropy", "ratio", "kl_to_sft")),
        *(f"rollout/{name}" for name in ("length", "reward", "reward_per_token", "terminated", "outcome")),
        *(f"rollout/{name}" for name in ("reverse_kl", "sampler_gap", "verifier")),
        *("reward", "kl"),
    )

    def __init__(
        self,
        policy: PolicySpec,
        check_start: bool = True,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__(policy, optimizer, schedule, seed, non_finite)
        self.check_start = check_start
        self.last_rollout: RolloutBatch | None = None
        self.rollout_count = 0
        self._logged_rollouts = 0
        self._checks_sampler = True

    def learn_from(self, rollouts: RolloutLoader) -> Iterator[RolloutBatch]:
        """One epoch. The trainer calls :meth:`training_step` with each part that this yields, adds the gradients of
        the parts of a step up, clips, and steps after the last of them.

        Args:
            rollouts: samples from the policy as the last step left it, and scores.
        """
        for rollout in rollouts.scored_rollouts():
            rollout = self.credit(rollout)
            self._record(rollout)
            for use in range(1, rollouts.refresh_every + 1):
                last = use == rollouts.refresh_every
                yield from rollouts.micro_batches(rollout, last=last, whole_groups=self.whole_groups)
            del rollout  # it can be gigabytes, and the next one is computed before the name is bound again

    def training_step(self, part: RolloutBatch, batch_idx: int) -> Tensor:
        """A micro-batch's share of the loss of its optimizer step."""
        scored = self.score(part)
        loss = self.loss(scored, part)
        self._check(scored, part, batch_idx)
        self._log(scored, part, loss)
        return self.to_step_loss(loss)

    def credit(self, rollout: RolloutBatch) -> RolloutBatch:
        """Called once a rollout, with all rows of this rank: compute what the loss needs of them, such as advantages.

        Args:
            rollout: with rewards; rows ``i·K … i·K + K − 1`` respond to one prompt, K = ``rollout.group_size``.

        Returns:
            the rollout with ``advantage`` [B, T]; 0 outside ``rollout.action_mask``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define credit.")

    def score(self, part: RolloutBatch) -> ScoredPart:
        """Called in each step for each micro-batch: its tokens under the policy in training, with their gradient."""
        return score_logits(sampled_logits(self.policy, part.tokens, part.mask))

    def loss(self, scored: ScoredPart, part: RolloutBatch) -> Tensor:
        """Called after :meth:`score`: the part's share of the step's loss.

        Args:
            scored: under the policy in training.
            part: rows of a credited rollout; ``num_tokens`` are those of the whole step, over parts and ranks.

        Returns:
            [], such that the shares of all parts and ranks add up to the loss: divide sums by ``part.num_tokens``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define loss.")

    def sampler_sums(self, rollout: RolloutBatch) -> Mapping[str, Tensor]:
        """Called once a rollout: how far another program's sampling differs, summed over tokens, for the log."""
        if rollout.sampler_logprob is None:
            return {}
        gap = (rollout.behaviour_logprob - rollout.sampler_logprob).abs()
        return {"sampler_gap": masked_sum(gap, rollout.action_mask)}

    @property
    def needs_demonstrations(self) -> bool:
        """Whether the last response of each group has to be the demonstration of its prompt."""
        return False

    @property
    def needs_action_rewards(self) -> bool:
        """Whether micro-batches must have the reward of every token of the vocabulary."""
        return False

    def prepare_policy(self) -> None:
        """Turn dropout off, which would be noise in the ratio to the policy that sampled."""
        disable_dropout(self.policy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the number of rollouts."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollouts"] = self.rollout_count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        super().on_load_checkpoint(checkpoint)
        self.rollout_count = self._logged_rollouts = int(checkpoint.get("rollouts", 0))

    def _record(self, rollout: RolloutBatch) -> None:
        # The scores of every token would stay in memory until the next rollout is scored.
        self.last_rollout = rollout._replace(actions=None)
        self.rollout_count += 1

    def _log(self, scored: ScoredPart, part: RolloutBatch, loss: Tensor) -> None:
        """Note values that are not finite, and log the step and a new rollout."""
        logprob, mask = scored.logprob.detach(), scored.mask
        values = {
            "log_probability": logprob,
            "reward": part.reward,
            "advantage": part.advantage,
            "sft_log_probability": part.sft_logprob,
        }
        self.non_finite.watch(part.prompt, values, mask)
        sums = {
            "entropy": masked_sum(scored.entropy.detach(), mask),
            "ratio": masked_sum((logprob - part.behaviour_logprob).exp(), mask),
            "kl_to_sft": masked_sum(logprob - part.sft_logprob, mask),
        }
        self.log_step({**sums, **scored.sums}, mask.sum(), loss)
        self._log_rollout()

    def _log_rollout(self) -> None:
        """Log averages over a whole rollout and all ranks, once."""
        rollout = self.last_rollout
        if rollout is None or self.rollout_count == self._logged_rollouts:
            return
        self._logged_rollouts = self.rollout_count
        mask = rollout.action_mask
        of_tokens = self.sampler_sums(rollout)
        sums = {
            "sequences": torch.tensor(len(mask)),
            "length": mask.sum(),
            "reward": masked_sum(rollout.reward, mask),
            "terminated": rollout.terminated.sum(),
            **of_tokens,
        }
        if rollout.outcome is not None:
            sums["outcome"] = rollout.outcome.sum()
        if rollout.policy_logprob is None:
            # Samples of π_θ itself (sampled ahead: of an earlier one) estimate KL(π_θ‖π_SFT), in nats a response.
            sums["reverse_kl"] = masked_sum(rollout.behaviour_logprob - rollout.sft_logprob, mask)
        total = sum_over_ranks(torch.stack([value.double().to(self.device) for value in sums.values()]))
        sequences, tokens, reward = total[0], total[1], total[2]
        averages = dict(zip(sums, total / sequences, strict=True))
        del averages["sequences"]
        for name in of_tokens:
            averages[name] = averages[name] * sequences / tokens.clamp_min(1)
        self.log_dict({f"rollout/{name}": value for name, value in averages.items()})
        self.log("rollout/reward_per_token", reward / tokens.clamp_min(1))
        progress = {"reward": averages["reward"], "kl": averages.get("reverse_kl")}
        self.log_dict(
            {name: value for name, value in progress.items() if value is not None}, prog_bar=True, logger=False
        )

    def _check(self, scored: ScoredPart, part: RolloutBatch, batch_idx: int) -> None:
        """At the first step KL(π_θ‖π_SFT) ≈ 0 and the ratio to the sampler ≈ 1; another program's is near it.

        Raises:
            InputError: they are not; says which and what usually causes it.
        """
        if not self.check_start:
            return
        logprob, mask = scored.logprob.detach(), scored.mask
        if self.global_step == 0 and batch_idx == 0:
            self.refuse_other_start(float(masked_mean((logprob - part.sft_logprob).abs(), mask)), "π_SFT", "data.sft")
            gap = float(masked_mean((logprob - part.behaviour_logprob).abs(), mask))
            if gap > self.start_tolerance:
                raise InputError(
                    f"The training pass and the sampler disagree by {gap:.3g} nats a token (allowed: "
                    f"{self.start_tolerance}), so the importance ratio is not 1 at the first step. Likely causes: a "
                    "sampling temperature or top_p other than 1, dropout left on, or rollouts kept from another "
                    "policy. `check_start: false` goes on with the ratio as correction."
                )
        checks, self._checks_sampler = self._checks_sampler, False
        # At another temperature, or from a nucleus, they differ as they should.
        if part.sampler_logprob is None or not checks or part.policy_logprob is not None:
            return
        gap = float(masked_mean((part.behaviour_logprob - part.sampler_logprob).abs(), mask))
        if not gap <= SAMPLER_TOLERANCE:
            raise InputError(
                f"The policy and the program that writes its answers (`data.sampler`) disagree by {gap:.3g} nats a "
                f"token (allowed: {SAMPLER_TOLERANCE}). It may not have taken the policy's weights, reads its config "
                "otherwise, or computes in too few bits. `check_start: false` goes on, with weights for its tokens."
            )
