"""HyPO: preferences of a file, with a hold on what the policy itself says to their prompts."""

from typing import Any, Literal

import torch
from torch import Tensor

from dpr_lightning.engine import sampled_logits
from dpr_lightning.errors import InputError
from dpr_lightning.functional import SelfPlayLoss, kl_divergence, masked_sum, reverse_kl_loss, token_logprobs
from dpr_lightning.modules.self_play import SelfPlay
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import HybridBatch, OnlineResponses


class HybridPreference(SelfPlay):
    """Learns pairs as :class:`SelfPlay` does, plus λ·KL(π_θ‖π_ref) on responses that the policy samples itself.

    The loss of pairs fixes the odds between responses that pairs have. All other responses are free, and the KL on the
    policy's own samples is what holds them: no reward model, no critic. The data are :class:`HybridDataModule`.

    Args:
        policy: what to train; it starts as its opponent, π_ref.
        loss: of the pairs, as there.
        scale: β of DPO, and as there.
        kl_weight: λ, units of loss per nat of KL a response (not a token); 0 samples nothing, and is :class:`SelfPlay`.
        kl_estimator: of its gradient: ``reinforce`` samples everything; ``all_actions`` is exact over the vocabulary in
            each state, and samples the states.
        options: everything else that :class:`SelfPlay` takes.

    Raises:
        InputError: λ is negative.
    Source: paper: Song et al. 2024, arXiv:2406.01462, as Algorithm 1 with REINFORCE over K responses; no code was
        released. Ours: return to go, and ``all_actions``. Not Hybrid-DPO (arXiv:2602.11902), which has the same name.
    """

    step_metrics = (*SelfPlay.step_metrics, "train/kl_online")

    def __init__(
        self,
        policy: PolicySpec,
        loss: SelfPlayLoss = "dpo",
        scale: float = 0.1,
        kl_weight: float = 1e-3,
        kl_estimator: Literal["reinforce", "all_actions"] = "reinforce",
        **options: Any,
    ) -> None:
        super().__init__(policy, loss, scale, **options)
        self.kl_weight, self.kl_estimator = kl_weight, kl_estimator
        if not 0 <= kl_weight < float("inf"):
            raise InputError(f"`model.kl_weight` is {kl_weight:g}: λ is 0 or more.")
        if kl_estimator not in ("reinforce", "all_actions"):
            raise InputError(f"`model.kl_estimator` is {kl_estimator!r}: choose reinforce or all_actions.")

    @property
    def needs_responses(self) -> bool:
        """Whether the data sample responses of the policy."""
        return self.kl_weight > 0

    @property
    def needs_distributions(self) -> bool:
        """Whether they score every token of the vocabulary under the opponent."""
        return self.kl_estimator == "all_actions"

    def training_step(self, batch: HybridBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """One micro-batch's share of the optimizer step's loss."""
        loss, sums = self.pair_step(batch.pairs, batch_idx)
        if batch.online is not None:
            hold, kl = self._hold(batch.online)
            loss = loss + self.kl_weight * hold
            sums = {**sums, "kl_online": kl}
        return self.log_pairs(batch.pairs, sums, loss)

    def _hold(self, online: OnlineResponses) -> tuple[Tensor, Tensor]:
        """The KL's share of the step's loss, and its estimate, nats summed over pairs."""
        scored = sampled_logits(self.policy, online.tokens, online.mask)
        divergence = None
        if online.opponent_distribution is None:
            logprob = token_logprobs(scored.logits, scored.tokens)
        else:
            every = scored.logits.to(torch.promote_types(scored.logits.dtype, torch.float32)).log_softmax(-1)
            divergence = kl_divergence(every, online.opponent_distribution, scored.mask)
            logprob = every.gather(-1, scored.tokens.unsqueeze(-1)).squeeze(-1)
        logprob = logprob.masked_fill(~scored.mask, 0.0)
        losses = reverse_kl_loss(logprob, online.opponent_logprob, scored.mask, online.group_size, divergence)
        ratio = logprob.detach() - online.opponent_logprob
        estimate = masked_sum(ratio if divergence is None else divergence.detach(), scored.mask)
        return losses.sum() / online.num_responses, estimate / online.group_size
