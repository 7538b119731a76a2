"""The dense token reward of an SFT run: π_SFT against earlier checkpoints of the run."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from dpr_lightning.distributed import as_wide_on_all_ranks, sum_over_ranks
from dpr_lightning.engine import (
    ActedStates,
    acted_logprobs,
    acted_states,
    default_token_budget,
    keeps_states,
    model_device,
    parts_by_length,
    shares_prompts,
)
from dpr_lightning.errors import InputError
from dpr_lightning.functional import (
    check_finite_rewards,
    length_normalise,
    zscore_by_position,
)
from dpr_lightning.policies import AUTO, FrozenPolicies, PolicySpec, Weights
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.rewards.distributions import ActionDistributions
from dpr_lightning.rewards.forms import reward_of_logprobs
from dpr_lightning.rewards.reward_spec import RewardSpec
from dpr_lightning.types import TokenScores

log = logging.getLogger(__name__)
SFT = "sft"


class DenseReward:
    """r̂_t = log π_SFT(a_t|s_t) − log π_ref(a_t|s_t), in nats per token, and the forms derived from it.

    It scores token ids; ``from dpr_lightning import DenseReward`` imports the one that reads texts too,
    :class:`dpr_lightning.data.TextReward`.

    Source: Li et al. 2025, arXiv:2510.02493, for one reference and ``log_ratio``; the other forms are ours.
    """

    def __init__(self, frozen: FrozenPolicies, spec: RewardSpec | None = None) -> None:
        """Use the models in ``frozen``: a policy named ``sft``, and at least one reference of any other name.

        ``spec``: form of the reward; None: :meth:`RewardSpec.recommended`.
        """
        self.frozen = frozen
        self.spec = spec if spec is not None else RewardSpec.recommended()
        self.references = [name for name in frozen.names if name != SFT]
        if SFT not in frozen.names or not self.references:
            raise InputError(f"A dense reward needs π_SFT and at least one reference; found {frozen.names}.")

    @classmethod
    def from_folders(
        cls,
        sft: str,
        references: Sequence[str],
        spec: RewardSpec | None = None,
        *,
        dtype: Dtype = "float32",
        attention: str = AUTO,
        policy: nn.Module | None = None,
        policy_spec: PolicySpec | None = None,
        weights: Weights = "whole",
        device: torch.device | None = None,
    ) -> Self:
        """Load π_SFT and the references from folders (full models, or adapters of one base).

        Any trainer may have written them, if they have one tokenizer.

        Args:
            sft: folder of π_SFT.
            references: folders of weaker policies: earlier checkpoints of the same run, or the model before it.
            spec: form of the reward; None: :meth:`RewardSpec.recommended`.
            dtype: of the frozen copies' parameters; log-probabilities are always subtracted in float32.
            attention: transformers' attention implementation.
            policy: a policy in training whose base the adapters may share.
            policy_spec: from which ``policy`` was built.
            weights: ``whole`` on every rank, in ``shards``, or ``auto`` by their size.
            device: of this rank's shard.

        Raises:
            InputError: a folder cannot be loaded, tokenizers differ, or a reference *is* π_SFT.
        """
        for reference in references:
            if same_folder(reference, sft):
                raise InputError(
                    f"The reference {reference!r} is π_SFT itself, so every reward would be 0. Use an earlier "
                    "checkpoint of the same run, such as the one halfway through."
                )
        folders = reward_folders(sft, references)
        frozen = FrozenPolicies.load(
            folders,
            dtype=dtype,
            attention=attention,
            policy=policy,
            policy_spec=policy_spec,
            weights=weights,
            device=device,
        )
        return cls(frozen, spec)

    def score(
        self,
        tokens: Tensor,
        mask: Tensor,
        *,
        token_budget: int | None = None,
        divergence: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> TokenScores:
        """The dense reward of tokens, with the log-probabilities that it was computed from.

        Args:
            tokens: [B, L] right-padded token ids.
            mask: [B, L] True where the policy acted.
            token_budget: tokens of a forward pass, padding included; limits memory and changes no score. None: as
                many as have 1 GiB of logits.
            divergence: compute KL(π_SFT‖π_ref)(s) even if the form of the reward does not need it.
            progress: called after each forward pass with its number of sequences.

        Returns:
            float32, on the device of ``tokens``, action-aligned [B, T].

        Raises:
            InputError: rewards are not finite, or π_SFT and a reference agree on every token.
        """
        return self._score(tokens, mask, token_budget, divergence, progress, keep=False)[0]

    @property
    def keeps_states(self) -> bool:
        """Whether the scores of all actions can be kept for a rollout: as the inputs of the models' heads."""
        for name in (SFT, *self.references):
            with self.frozen.use(name) as model:
                if not keeps_states(model):
                    return False
        return True

    def score_actions(
        self, tokens: Tensor, mask: Tensor, token_budget: int | None = None
    ) -> tuple[TokenScores, "ActionDistributions"]:
        """The scores of tokens, as from :meth:`score`, and those of every token of the vocabulary at the same states.

        Raises:
            InputError: as from :meth:`score`; or the reward is standardised by position or length, which only sampled
                tokens define.
        """
        if self.spec.position_zscore or self.spec.length_normalise:
            raise InputError(
                "The all-actions estimator scores tokens that were not sampled, for which position_zscore and "
                "length_normalise are not defined. Turn them off, or use `estimator: reinforce`."
            )
        scores, states = self._score(tokens, mask, token_budget, False, None, keep=True)
        return scores, ActionDistributions(self.spec, states)

    def _score(
        self,
        tokens: Tensor,
        mask: Tensor,
        token_budget: int | None,
        divergence: bool,
        progress: Callable[[int], None] | None,
        *,
        keep: bool,
    ) -> tuple[TokenScores, list[ActedStates]]:
        width = int(mask.sum(1).amax()) if mask.numel() else 0
        shape = (tokens.shape[0], width)
        policy_logprob = torch.zeros(shape)
        references = torch.zeros(len(self.references), *shape)
        wants_divergence = divergence or self.spec.needs_divergence
        divergences = torch.zeros(shape) if wants_divergence else torch.full(shape, float("nan"))
        action_mask = torch.arange(width) < mask.sum(1, keepdim=True).cpu()
        collected: list[ActedStates] = []
        with self.frozen.use(SFT) as model:
            budget = token_budget if token_budget is not None else default_token_budget(model)
            shared = shares_prompts(model)
        with self.frozen.in_step() as lockstep:
            for rows, part_tokens, part_mask in parts_by_length(tokens, mask, budget, shared=shared):
                lockstep.begin()
                part, states = self._score_part(part_tokens, part_mask, wants_divergence, keep)
                columns = part[0].shape[1]
                policy_logprob[rows, :columns] = part[0].float().cpu()
                references[:, rows, :columns] = part[1].float().cpu()
                if part[2] is not None:
                    divergences[rows, :columns] = part[2].float().cpu()
                if keep:
                    collected = collected or [model.allocate(*shape) for model in states]
                    for whole, chunk in zip(collected, states, strict=True):
                        whole.hidden[rows.to(whole.hidden.device), :columns] = chunk.hidden
                if progress is not None:
                    progress(len(rows))
        policy_logprob = policy_logprob.masked_fill(~action_mask, 0.0)
        references = references.masked_fill(~action_mask, 0.0)
        reward = reward_of_logprobs(self.spec, policy_logprob, references, divergences if wants_divergence else None)
        check_finite_rewards(reward, action_mask)
        self._check_different(policy_logprob, references, action_mask)
        if self.spec.position_zscore:
            # Over the samples of all ranks: a reward must not depend on the number of ranks.
            wide, acted = as_wide_on_all_ranks(reward), as_wide_on_all_ranks(action_mask)
            reward = zscore_by_position(wide, acted, sum_over_ranks)[:, :width]
        if self.spec.length_normalise:
            reward = length_normalise(reward, action_mask)
        reward = reward.masked_fill(~action_mask, 0.0)
        parts = (policy_logprob, references, divergences, reward, action_mask)
        return TokenScores(*(part.to(tokens.device) for part in parts)), collected

    @torch.no_grad()
    def _score_part(
        self, tokens: Tensor, mask: Tensor, divergence: bool, keep: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None], list[ActedStates]]:
        if not divergence and not keep:
            scores = torch.stack([self._ask(acted_logprobs, name, tokens, mask) for name in (SFT, *self.references)])
            return (scores[0], scores[1:], None), []
        states = [self._ask(acted_states, name, tokens, mask) for name in (SFT, *self.references)]
        return ActionDistributions(self.spec, states).logprobs_of(tokens, mask, divergence), states

    def _ask(self, question: Callable[[nn.Module, Tensor, Tensor], Any], name: str, *inputs: Tensor) -> Any:
        with self.frozen.use(name) as model:
            return question(model, *(part.to(model_device(model)) for part in inputs))

    def _check_different(self, policy: Tensor, references: Tensor, mask: Tensor) -> None:
        for index, reference in enumerate(references):
            # Tokens of probability 1 may well agree. Compared first: `dpr plan` counts with floats without content.
            if torch.equal(policy, reference) and (mask & (policy != 0)).any():
                raise InputError(
                    f"π_SFT and reference number {index + 1} of {len(references)} give every token the same "
                    "probability, so every reward is 0. The reference's folder holds the same weights; use an earlier "
                    "checkpoint of the run."
                )


def reward_folders(sft: str, references: Sequence[str]) -> dict[str, str]:
    """The folders of the frozen models by the names under which :class:`DenseReward` uses them."""
    return {SFT: sft} | {f"reference_{index}": folder for index, folder in enumerate(references)}


def same_folder(first: str, second: str) -> bool:
    """Whether two paths lead to one folder."""
    return first == second or (Path(first).exists() and Path(first).resolve() == Path(second).resolve())
