"""The forward pass of training: a loss of the acted tokens, computed in blocks of the output head."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpr_lightning.engine.forward import logits_at
from dpr_lightning.engine.fused_head import ActionValues, HeadLoss, TokenLoss, head_loss
from dpr_lightning.engine.model_inputs import Inputs, model_inputs
from dpr_lightning.engine.output_head import bare_head, head_does, plain_head
from dpr_lightning.functional import action_positions, all_actions_loss, entropy, token_logprobs


class ActedLoss(NamedTuple):
    """``loss`` [] with its gradient; ``logprob`` and ``entropy`` [B, T], nats, 0 outside ``mask``, without one.

    ``tokens`` and ``mask`` [B, T]: the actions, action-aligned.
    """

    loss: Tensor
    logprob: Tensor
    entropy: Tensor
    tokens: Tensor
    mask: Tensor


def acted_loss(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    token_loss: TokenLoss,
    action_values: ActionValues | None = None,
    *,
    packed: bool | None = None,
    sampled: bool = False,
) -> ActedLoss:
    """Sum of a loss over the acted tokens, by :func:`dpr_lightning.functional.head_loss` where the head is a plain one.

    Where it is not (a bias, an adapter on it, logits that are capped or scaled afterwards), all logits are computed at
    once and autograd does the rest.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        token_loss: of the acted tokens, counted through the rows; see :func:`dpr_lightning.functional.head_loss`.
        action_values: of every token in the same states, for an objective that is exact over the vocabulary.
        packed: as for :func:`dpr_lightning.policies.action_logits`.
        sampled: whether several rows may answer one prompt, which is then read once.
    """
    position, acted = action_positions(mask)
    actions, state = tokens.gather(1, position), (position - 1).clamp_min(0)
    if plain_head(model) is not None:
        inputs, start = model_inputs(model, tokens, mask, packed, sampled=sampled)
        result = loss_at(model, inputs, (start.unsqueeze(1) + state)[acted], actions[acted], token_loss, action_values)
    else:
        logits = logits_at(model, tokens, mask, state, packed, sampled=sampled)
        result = _loss_of_logits(logits, actions, acted, token_loss, action_values)
    empty = result.logprob.new_zeros(acted.shape)
    logprob, uncertainty = (empty.masked_scatter(acted, part) for part in (result.logprob, result.entropy))
    return ActedLoss(result.loss, logprob, uncertainty, actions, acted)


def _loss_of_logits(
    logits: Tensor, actions: Tensor, acted: Tensor, token_loss: TokenLoss, action_values: ActionValues | None
) -> HeadLoss:
    """As :func:`head_loss`, by autograd, from the logits [B, T, V] of the acted states."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprob = token_logprobs(logits, actions)[acted]
    every = slice(0, len(logprob))
    loss = token_loss(logprob, every)
    if action_values is not None:
        logprobs = logits[acted].log_softmax(-1)
        values = action_values(logprobs.detach(), every)
        states = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
        loss = loss + all_actions_loss(logprobs.unsqueeze(0), values.unsqueeze(0), states, num_tokens=1.0)
    return HeadLoss(loss, logprob.detach(), entropy(logits.detach().log_softmax(-1))[acted])


def loss_at(
    model: nn.Module,
    inputs: Inputs,
    index: Tensor,
    actions: Tensor,
    token_loss: TokenLoss,
    action_values: ActionValues | None = None,
) -> HeadLoss:
    """The loss of a model whose logits are the product of its bare head, by one forward pass.

    Args:
        model: a causal language model with a plain head.
        inputs: of its forward pass.
        index: [N], the scored states, counted through all rows.
        actions: [N], tokens sampled in them.
        token_loss: see :func:`dpr_lightning.engine.head_loss`.
        action_values: see :func:`dpr_lightning.engine.head_loss`.
    """
    head: Any = bare_head(model)
    result: list[HeadLoss] = []

    def compute(hidden: Tensor) -> Tensor:
        states = hidden.flatten(0, 1).index_select(0, index)
        result.append(head_loss(states, head.weight, actions, token_loss, action_values))
        # Returned as the logits, so that hooks that gather sharded weights run on a layer's output.
        return result[0].loss.view(1, 1, 1)

    with head_does(head, compute):
        output = model(**inputs).logits
    return result[0]._replace(loss=output.view(()))
