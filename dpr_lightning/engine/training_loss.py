"""The forward pass of training: a loss of the acted tokens, computed in blocks of the output head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpr_lightning.engine.forward import logits_at
from dpr_lightning.engine.fused_head import ActionValues, HeadLoss, Part, TokenLoss, head_loss
from dpr_lightning.engine.model_inputs import model_inputs
from dpr_lightning.engine.output_head import head_does, plain_head, states_at
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
    sampled: bool = False,
) -> ActedLoss:
    """Sum of a loss over the acted tokens, by :func:`head_loss` where the head is a plain one.

    Where it is not (a bias, an adapter on it, logits that are capped or scaled afterwards), all logits are computed at
    once and autograd does the rest.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        token_loss: of the acted tokens, counted through the rows; see :func:`head_loss`.
        action_values: of every token in the same states, for an objective that is exact over the vocabulary.
        sampled: whether several rows may answer one prompt, which is then read once.
    """
    position, acted = action_positions(mask)
    actions, state, head = tokens.gather(1, position), position - 1, plain_head(model)
    if head is None:
        logits = logits_at(model, tokens, mask, state, sampled=sampled)
        result = _loss_of_logits(logits, actions, acted, token_loss, action_values)
    else:
        inputs, start = model_inputs(model, tokens, mask, sampled=sampled)
        index = (start.unsqueeze(1) + state)[acted]
        results: list[HeadLoss] = []

        def compute(hidden: Tensor) -> Tensor:
            states = states_at(hidden, index)
            results.append(head_loss(states, head.weight, actions[acted], token_loss, action_values))
            # Returned as the logits, so that hooks that gather sharded weights run on a layer's output.
            return results[0].loss.view(1, 1, 1)

        with head_does(head, compute):
            loss = model(**inputs).logits.view(())
        result = results[0]._replace(loss=loss)
    empty = result.logprob.new_zeros(acted.shape)
    logprob, uncertainty = (empty.masked_scatter(acted, part) for part in (result.logprob, result.entropy))
    return ActedLoss(result.loss, logprob, uncertainty, actions, acted)


def _loss_of_logits(
    logits: Tensor,
    actions: Tensor,
    acted: Tensor,
    token_loss: TokenLoss,
    action_values: ActionValues | None,
) -> HeadLoss:
    """As :func:`head_loss`, by autograd, from the logits [B, T, V] of the acted states."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprob = token_logprobs(logits, actions)[acted]
    logprobs = (logits.detach() if action_values is None else logits)[acted].log_softmax(-1)
    every = slice(0, len(logprob))
    loss = token_loss(logprob, Part(every, logprobs.detach().amax(-1)))
    if action_values is not None:
        values = action_values(logprobs.detach(), every)
        states = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
        loss = loss + all_actions_loss(logprobs.unsqueeze(0), values.unsqueeze(0), states, num_tokens=1.0)
    return HeadLoss(loss, logprob.detach(), entropy(logprobs.detach()))
