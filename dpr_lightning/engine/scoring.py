"""Forward passes for scoring, without gradients: logits exist for one block of states at a time."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dpr_lightning.engine.forward import logits_at
from dpr_lightning.engine.fused_head import head_logprobs, rows_at_a_time
from dpr_lightning.engine.lockstep import Lockstep
from dpr_lightning.engine.model_inputs import model_inputs
from dpr_lightning.engine.model_mode import model_device
from dpr_lightning.engine.output_head import head_does, plain_head, states_at
from dpr_lightning.engine.row_groups import parts_by_length
from dpr_lightning.engine.shared_prompts import shares_prompts
from dpr_lightning.engine.weight_shards import fetches_weights
from dpr_lightning.functional import action_positions, token_logprobs

_TOKENS = 16384


@dataclass(frozen=True)
class ActedStates:
    """A model's distributions where the policy acted, stored as the inputs of its head.

    ``hidden`` [B, T, D], ``weight`` [V, D]; where ``weight`` is None, ``hidden`` has the logits [B, T, V].
    """

    hidden: Tensor
    weight: Tensor | None

    def logprobs(self, index: Tensor) -> Tensor:
        """Log-probabilities [n, V] of all tokens, at ``index`` [n] counted through all rows; at least float32."""
        states = self.hidden.flatten(0, 1)[index]
        logits = states if self.weight is None else states @ self.weight.T
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    @property
    def rows_at_a_time(self) -> int:
        """States whose log-probabilities exist at the same time; see :func:`rows_at_a_time`."""
        vocabulary = self.hidden.shape[-1] if self.weight is None else len(self.weight)
        return rows_at_a_time(vocabulary, self.hidden.device)

    def allocate(self, rows: int, actions: int) -> "ActedStates":
        """Zeros of the same kind, for ``rows`` rows of ``actions`` actions."""
        return ActedStates(self.hidden.new_zeros(rows, actions, self.hidden.shape[-1]), self.weight)

    def take(self, rows: Tensor, actions: int) -> "ActedStates":
        """The states of ``rows``, cut to ``actions``."""
        return ActedStates(self.hidden[rows.to(self.hidden.device), :actions], self.weight)


class ScoredActions(NamedTuple):
    """``logprob`` [N] of the acted tokens of all rows, nats; ``is_first`` [N]: the model finds no token likelier.

    ``best`` [N]: log-probability of the most probable token in the same state, nats. ``entropy`` [N]: of the
    distribution in that state, nats; None where it was not requested.
    """

    logprob: Tensor
    is_first: Tensor
    best: Tensor
    entropy: Tensor | None = None


def keeps_states(model: nn.Module) -> bool:
    """Whether :func:`acted_states` stores the inputs of the head, and not logits."""
    return _plain_head_here(model) is not None


def default_token_budget(model: nn.Module) -> int:
    """Tokens of one forward pass by default.

    16,384; for a model whose logits all exist at once, as many as fit into a GiB of float32 logits.
    """
    vocabulary = int(cast(Any, model.config).get_text_config().vocab_size)
    return _TOKENS if keeps_states(model) else max(1, min(_TOKENS, 2**28 // vocabulary))


def _plain_head_here(model: nn.Module) -> nn.Linear | None:
    """The plain head of a model whose weights are not sharded.

    Sharded weights are gathered and freed again, and trying the head would be a pass that all ranks must run.
    """
    return None if fetches_weights(model) else plain_head(model)


@torch.no_grad()
def acted_states(model: nn.Module, tokens: Tensor, mask: Tensor) -> ActedStates:
    """One forward pass, up to the head where that is a plain one and not sharded.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
    """
    position, _ = action_positions(mask)
    state, head = position - 1, _plain_head_here(model)
    if head is None:
        return ActedStates(logits_at(model, tokens, mask, state, sampled=True), None)
    inputs, start = model_inputs(model, tokens, mask, sampled=True)
    index = (start.unsqueeze(1) + state).clamp_min(0)
    with head_does(head, lambda hidden: states_at(hidden, index)):
        return ActedStates(model(**inputs).logits, head.weight)


@torch.no_grad()
def acted_logprobs(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities [B, T] of the acted tokens, nats, at least float32; 0 where a row has no action.

    Arguments as for :func:`acted_states`.
    """
    position, acted = action_positions(mask)
    actions, state, head = tokens.gather(1, position), position - 1, _plain_head_here(model)
    if head is None:
        logits = logits_at(model, tokens, mask, state, sampled=True)
        return token_logprobs(logits, actions).masked_fill(~acted, 0.0)
    inputs, start = model_inputs(model, tokens, mask, sampled=True)
    index = (start.unsqueeze(1) + state)[acted]

    def compute(hidden: Tensor) -> Tensor:
        return head_logprobs(states_at(hidden, index), head.weight, actions[acted]).view(1, 1, -1)

    with head_does(head, compute):
        logprob: Tensor = model(**inputs).logits.flatten()
    return logprob.new_zeros(acted.shape).masked_scatter(acted, logprob)


@torch.no_grad()
def scored_actions(model: nn.Module, tokens: Tensor, mask: Tensor, *, entropy: bool = False) -> ScoredActions:
    """How likely a model finds the acted tokens, and its first choice in their place.

    Called in validation, and to look for wrong tokens: logits of a block of states exist at a time where the head is a
    plain one and not sharded.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        entropy: whether the entropy of each state is computed too, one more pass over the logits.
    """
    position, acted = action_positions(mask)
    actions, states = tokens.gather(1, position)[acted], acted_states(model, tokens, mask)
    rows = states.rows_at_a_time
    logprob = states.hidden.new_zeros(len(actions), dtype=torch.promote_types(states.hidden.dtype, torch.float32))
    best, is_first = torch.zeros_like(logprob), torch.zeros_like(actions, dtype=torch.bool)
    entropies = torch.zeros_like(logprob) if entropy else None
    index = acted.flatten().nonzero().flatten()
    for start in range(0, len(actions), rows):
        part = slice(start, start + rows)
        logprobs = states.logprobs(index[part])
        logprob[part] = logprobs.gather(1, actions[part, None]).squeeze(1)
        best[part], first = logprobs.max(-1)
        is_first[part] = first == actions[part]
        if entropies is not None:
            entropies[part] = torch.special.entr(logprobs.exp()).sum(-1)
    return ScoredActions(logprob, is_first, best, entropies)


@torch.no_grad()
def sequence_logprobs(model: nn.Module, tokens: Tensor, mask: Tensor, *, token_budget: int | None = None) -> Tensor:
    """Log-probabilities of the acted tokens under ``model``, without gradients.

    Args:
        model: a causal language model; its mode does not change.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        token_budget: tokens of one forward pass, padding included; None:
            :func:`dpr_lightning.engine.default_token_budget`.

    Returns:
        [B, T] float32, nats, on the device of ``tokens``; 0 where a row has no action.
    """
    logprob = torch.zeros(len(tokens), int(mask.sum(1).amax()) if mask.numel() else 0, device=tokens.device)
    device = model_device(model)
    budget = token_budget if token_budget is not None else default_token_budget(model)
    with Lockstep([model]) as lockstep:
        for rows, part_tokens, part_mask in parts_by_length(tokens, mask, budget, shared=shares_prompts(model)):
            lockstep.begin()
            part = acted_logprobs(model, part_tokens.to(device), part_mask.to(device)).float()
            logprob[rows.to(logprob.device), : part.shape[1]] = part.to(logprob.device)
    return logprob
