"""The forward pass of training: a loss of the acted tokens, computed in blocks of the output head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpr_lightning.engine.forward import logits_at
from dpr_lightning.engine.fused_head import ActionValues, HeadLoss, TokenLoss, Trim, head_loss
from dpr_lightning.engine.model_inputs import model_inputs
from dpr_lightning.engine.output_head import head_does, plain_head, states_at
from dpr_lightning.functional import action_positions, all_actions_loss, entropy, is_trimmed, token_logprobs


class ActedLoss(NamedTuple):
    """``loss`` [] with its gradient; ``logprob`` and ``entropy`` [B, T], nats, 0 outside ``mask``, without one.

    ``tokens`` and ``mask`` [B, T]: the actions, action-aligned; ``trimmed`` []: how many of them added no loss.
    """

    loss: Tensor
    logprob: Tensor
    entropy: Tensor
    tokens: Tensor
    mask: Tensor
    trimmed: Tensor


def acted_loss(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    token_loss: TokenLoss,
    action_values: ActionValues | None = None,
    *,
    sampled: bool = False,
    trim: Trim | None = None,
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
        trim: leaves tokens out; see :func:`head_loss`.
    """
    position, acted = action_positions(mask)
    actions, state, head = tokens.gather(1, position), position - 1, plain_head(model)
    if head is None:
        logits = logits_at(model, tokens, mask, state, sampled=sampled)
        result = _loss_of_logits(logits, actions, acted, token_loss, action_values, trim)
    else:
        inputs, start = model_inputs(model, tokens, mask, sampled=sampled)
        index = (start.unsqueeze(1) + state)[acted]
        results: list[HeadLoss] = []

        def compute(hidden: Tensor) -> Tensor:
            states = states_at(hidden, index)
            results.append(head_loss(states, head.weight, actions[acted], token_loss, action_values, trim))
            # Returned as the logits, so that hooks that gather sharded weights run on a layer's output.
            return results[0].loss.view(1, 1, 1)

        with head_does(head, compute):
            loss = model(**inputs).logits.view(())
        result = results[0]._replace(loss=loss)
    empty = result.logprob.new_zeros(acted.shape)
    logprob, uncertainty = (empty.masked_scatter(acted, part) for part in (result.logprob, result.entropy))
    return ActedLoss(result.loss, logprob, uncertainty, actions, acted, result.trimmed.sum())


def _loss_of_logits(
    logits: Tensor,
    actions: Tensor,
    acted: Tensor,
    token_loss: TokenLoss,
    action_values: ActionValues | None,
    trim: Trim | None,
) -> HeadLoss:
    """As :func:`head_loss`, by autograd, from the logits [B, T, V] of the acted states."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprob = token_logprobs(logits, actions)[acted]
    every = slice(0, len(logprob))
    trimmed = torch.zeros_like(logprob, dtype=torch.bool)
    if trim is not None:
        best = logits.detach()[acted].log_softmax(-1).amax(-1)
        trimmed = is_trimmed(logprob.detach(), best, trim.margin, trim.sure)
    loss = token_loss(logprob.masked_fill(trimmed, 0.0), every)
    if action_values is not None:
        logprobs = logits[acted].log_softmax(-1)
        values = action_values(logprobs.detach(), every)
        states = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
        loss = loss + all_actions_loss(logprobs.unsqueeze(0), values.unsqueeze(0), states, num_tokens=1.0)
    return HeadLoss(loss, logprob.detach(), entropy(logits.detach().log_softmax(-1))[acted], trimmed)
