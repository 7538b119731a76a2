"""The forward pass of training: a loss of the acted tokens, with the head's work done while it is at hand."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpr_lightning.functional import HeadLoss, TokenLoss, action_positions, entropy, head_loss, token_logprobs
from dpr_lightning.policies.forward import action_logits, evaluating, model_inputs

_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether the logits of a model are its head's product with the hidden states, and nothing else."""


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
    model: nn.Module, tokens: Tensor, mask: Tensor, token_loss: TokenLoss, *, packed: bool | None = None
) -> ActedLoss:
    """Sum of a loss over the acted tokens, by :func:`dpr_lightning.functional.head_loss` where the head is a plain one.

    Where it is not (a bias, an adapter on it, logits that are capped or scaled afterwards), the logits are made in one
    piece and autograd does the rest.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        token_loss: of the acted tokens, counted through the rows; see :func:`dpr_lightning.functional.head_loss`.
        packed: as for :func:`action_logits`.
    """
    position, acted = action_positions(mask)
    chosen = tokens.gather(1, position)
    found = _fused(model, tokens, mask, position, acted, chosen[acted], token_loss, packed)
    if found is None:
        logits = action_logits(model, tokens, mask, packed=packed).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logprob = token_logprobs(logits, chosen)[acted]
        loss = token_loss(logprob, slice(0, len(logprob)))
        found = HeadLoss(loss, logprob.detach(), entropy(logits.detach().log_softmax(-1))[acted])
    empty = found.logprob.new_zeros(acted.shape)
    logprob, uncertainty = (empty.masked_scatter(acted, part) for part in (found.logprob, found.entropy))
    return ActedLoss(found.loss, logprob, uncertainty, chosen, acted)


def _fused(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    position: Tensor,
    acted: Tensor,
    chosen: Tensor,
    token_loss: TokenLoss,
    packed: bool | None,
) -> HeadLoss | None:
    head = bare_head(model)
    if head is None:
        return None
    if model not in _plain:
        _plain[model] = _ends_with_its_head(model, head)
    if not _plain[model]:
        return None
    inputs, start = model_inputs(model, tokens, mask, packed)
    place = (start.unsqueeze(1) + (position - 1).clamp_min(0))[acted]
    return loss_at(model, inputs, place, chosen, token_loss)


def bare_head(model: nn.Module) -> nn.Linear | None:
    """The output head, where it is a product with a matrix and no more."""
    get_head: Any = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    return head if type(head) is nn.Linear and head.bias is None else None


def loss_at(
    model: nn.Module, inputs: Mapping[str, Tensor], place: Tensor, chosen: Tensor, token_loss: TokenLoss
) -> HeadLoss:
    """The loss of a model whose logits are what its bare head makes.

    Args:
        model: asked once.
        inputs: for its forward pass.
        place: [N], states to look at, counted through all rows.
        chosen: [N], tokens chosen there.
        token_loss: see :func:`dpr_lightning.functional.head_loss`.
    """
    head: Any = bare_head(model)
    found: list[HeadLoss] = []

    def compute(hidden: Tensor) -> Tensor:
        states = hidden.flatten(0, 1).index_select(0, place)
        found.append(head_loss(states, head.weight, chosen, token_loss))
        # In place of logits, so that whoever gathers weights for a layer sees its result go by.
        return found[0].loss.view(1, 1, 1)

    with _head_does(head, compute):
        output = model(**inputs, use_cache=False).logits
    return found[0]._replace(loss=output.view(()))


@contextmanager
def _head_does(head: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a call of the head compute something else; hooks on it work as ever."""
    held: Any = head
    held.forward = compute
    try:
        yield
    finally:
        del held.forward


@torch.no_grad()
def _ends_with_its_head(model: nn.Module, head: nn.Linear) -> bool:
    """Whether a model returns what its head computes; found out with a few tokens, for architectures do not say."""
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
    try:
        # Several: the embedding of one that pads is 0, and so are all its logits, capped or not.
        tokens = torch.arange(min(8, head.out_features), device=head.weight.device).unsqueeze(0)
        with evaluating([model]):  # which draws no random numbers: a run that goes on looks again
            logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
    return len(seen) == 1 and seen[0].shape == logits.shape and bool(torch.equal(seen[0], logits))
