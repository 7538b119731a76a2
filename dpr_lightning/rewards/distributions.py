"""Scores of every token under the frozen models, without a tensor over all states and the vocabulary in memory."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dpr_lightning.engine import ActedStates
from dpr_lightning.errors import InputError
from dpr_lightning.functional import action_positions, check_finite_rewards
from dpr_lightning.rewards.forms import expected_log_ratio, reward_of_logprobs
from dpr_lightning.rewards.reward_spec import RewardSpec
from dpr_lightning.types import ActionScores


class ActionDistributions:
    """Implements :class:`dpr_lightning.types.AllActionScores` with the models' hidden states at each acted state.

    Args:
        spec: form of the reward.
        states: of π_SFT, then of each reference, for the same rows and columns [B, T].
    """

    def __init__(self, spec: RewardSpec, states: Sequence[ActedStates]) -> None:
        self.spec, self.states = spec, list(states)

    def take(self, rows: Tensor, actions: int) -> "ActionDistributions":
        """The same for some rows, cut to ``actions`` columns."""
        return ActionDistributions(self.spec, [states.take(rows, actions) for states in self.states])

    @torch.no_grad()
    def scores(self, index: Tensor) -> ActionScores:
        """The scores at the states ``index`` [n], positions in the flattened [B, T].

        Raises:
            InputError: a reward that is not finite, of a token that π_SFT may choose.
        """
        policy, references = self._logprobs(index)
        divergence = None
        if self.spec.needs_divergence:
            divergence = expected_log_ratio(self.spec, policy, references).unsqueeze(-1)
        reward = reward_of_logprobs(self.spec, policy, references, divergence)
        check_finite_rewards(reward, ~policy.isneginf())
        return ActionScores(reward, policy, references.mean(0))

    @torch.no_grad()
    def logprobs_of(self, tokens: Tensor, mask: Tensor, divergence: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities of the acted tokens under π_SFT [B, T] and the references [R, B, T], and the divergence.

        Args:
            tokens: [B, L] right-padded.
            mask: [B, L] True where the policy acted.
            divergence: whether E_{a~π_SFT}[r̂(s, a)] [B, T] is computed.
        """
        device = self.states[0].hidden.device
        position, acted = action_positions(mask)
        token = tokens.gather(1, position).to(device).flatten()
        result = torch.zeros(1 + len(self.states), token.numel(), device=device)
        for block in self._blocks(acted.to(device)):
            policy, references = self._logprobs(block)
            picked = token[block].unsqueeze(-1)
            result[0, block] = policy.gather(-1, picked).squeeze(-1).float()
            result[1:-1, block] = references.gather(-1, picked.expand(len(references), -1, -1)).squeeze(-1).float()
            if divergence:
                result[-1, block] = expected_log_ratio(self.spec, policy, references).float()
        shaped = result.view(-1, *acted.shape)
        return shaped[0], shaped[1:-1], shaped[-1] if divergence else None

    def _logprobs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        policy, *references = (states.logprobs(index.to(states.hidden.device)) for states in self.states)
        widths = [policy.shape[-1], *(reference.shape[-1] for reference in references)]
        if len(set(widths)) > 1:
            fewest = min(widths)
            raise InputError(
                f"π_SFT and its references have output heads of {', '.join(map(str, widths))} tokens, and their whole "
                "distributions are compared. Save the larger ones again after "
                f"`model.resize_token_embeddings({fewest})`, or use a form that does without, such as `one_sided`."
            )
        return policy, torch.stack(references)

    def _blocks(self, acted: Tensor) -> Iterator[Tensor]:
        """Positions of the acted states in the flattened [B, T], in blocks whose logits fit the device."""
        yield from torch.split(acted.flatten().nonzero().squeeze(1), self.states[0].rows_at_a_time)
