"""What frozen models say of every token, without a tensor over states and vocabulary ever being whole."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dpr_lightning.engine import ActedStates
from dpr_lightning.engine.fused_head import rows_at_a_time
from dpr_lightning.functional import action_positions, check_finite_rewards
from dpr_lightning.rewards.forms import expected_log_ratio, reward_of_logprobs
from dpr_lightning.rewards.reward_spec import RewardSpec
from dpr_lightning.types import ActionScores


class ActionDistributions:
    """π_SFT and its references at each acted state of some rows; see :class:`dpr_lightning.types.AllActionScores`.

    Args:
        spec: form of the reward.
        states: of π_SFT, then of each reference; the same rows and columns [B, T].
    """

    def __init__(self, spec: RewardSpec, states: Sequence[ActedStates]) -> None:
        self.spec, self.states = spec, list(states)

    def take(self, rows: Tensor, actions: int) -> "ActionDistributions":
        """Those of some rows, cut to ``actions`` columns."""
        return ActionDistributions(self.spec, [held.take(rows, actions) for held in self.states])

    @torch.no_grad()
    def scores(self, place: Tensor) -> ActionScores:
        """At the acted states ``place`` [n], counted through all rows and columns.

        Raises:
            InputError: a reward that is not finite, of a token that π_SFT may choose.
        """
        policy, references = self._logprobs(place)
        divergence = None
        if self.spec.needs_divergence:
            divergence = expected_log_ratio(self.spec, policy, references).unsqueeze(-1)
        reward = reward_of_logprobs(self.spec, policy, references, divergence)
        check_finite_rewards(reward, policy > -torch.inf)
        return ActionScores(reward, policy, references.mean(0))

    @torch.no_grad()
    def chosen(self, tokens: Tensor, mask: Tensor, divergence: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities of the acted tokens under π_SFT [B, T] and the references [R, B, T], and the divergence.

        Args:
            tokens: [B, L] right-padded.
            mask: [B, L] True where the policy acted.
            divergence: whether E_{a~π_SFT}[r̂(s, a)] [B, T] is wanted.
        """
        device = self.states[0].hidden.device
        position, acted = action_positions(mask)
        index = tokens.gather(1, position).to(device).flatten()
        found = torch.zeros(1 + len(self.states), index.numel(), device=device)
        for place in self._blocks(acted.to(device)):
            policy, references = self._logprobs(place)
            picked = index[place].unsqueeze(-1)
            found[0, place] = policy.gather(-1, picked).squeeze(-1).float()
            found[1:-1, place] = references.gather(-1, picked.expand(len(references), -1, -1)).squeeze(-1).float()
            if divergence:
                found[-1, place] = expected_log_ratio(self.spec, policy, references).float()
        shaped = found.view(-1, *acted.shape)
        return shaped[0], shaped[1:-1], shaped[-1] if divergence else None

    def _logprobs(self, place: Tensor) -> tuple[Tensor, Tensor]:
        policy, *references = (held.logprobs(place.to(held.hidden.device)) for held in self.states)
        return policy, torch.stack(references)

    def _blocks(self, acted: Tensor) -> Iterator[Tensor]:
        """Places of the acted states, as many at a time as suit the device."""
        first = self.states[0]
        rows = rows_at_a_time(first.hidden.flatten(0, 1).T if first.weight is None else first.weight)
        yield from torch.split(acted.flatten().nonzero().squeeze(1), rows)
