"""The forward pass that trains and scores: logits only where the policy acted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpr_lightning.engine.model_inputs import model_inputs
from dpr_lightning.functional import action_positions


class ActionLogits(NamedTuple):
    """``logits`` [B, T, V] that chose ``tokens`` [B, T]; ``mask`` [B, T] is True for real actions."""

    logits: Tensor
    tokens: Tensor
    mask: Tensor


@contextmanager
def _head_sees(model: nn.Module, place: Tensor) -> Iterator[None]:
    """Let the output head see only the hidden states at ``place`` [B, T], counted through all rows.

    A hook on the head, and not a call around it, so that whatever an architecture does to its logits afterwards
    (soft caps, scaling) still happens.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def select(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0].flatten(0, 1).index_select(0, place.flatten())
        return (hidden.view(*place.shape, hidden.shape[-1]), *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def logits_at(
    model: nn.Module, tokens: Tensor, mask: Tensor, state: Tensor, packed: bool | None, *, sampled: bool = False
) -> Tensor:
    """Logits [B, S, V] at the positions ``state`` [B, S] of each row; the others as in :func:`action_logits`.

    With ``sampled``, prompts that several rows answer may be read once; then ``state`` may lie in no prompt.
    """
    inputs, start = model_inputs(model, tokens, mask, packed, sampled=sampled)
    with _head_sees(model, (start.unsqueeze(1) + state).clamp_min(0)):
        return model(**inputs).logits  # type: ignore[no-any-return]


def last_logits(model: nn.Module, **inputs: Any) -> Tensor:
    """Logits [B, V] after the last token of each row, of a model that is given ``inputs``.

    The head is shown those states next to each other. As parts of all states they would make PyTorch multiply each row
    with a copy of the weights of its own on a CPU in half precision: 4 of the 11 s that reading 64 prompts of 128
    tokens took.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda _module, given: (given[0].contiguous(), *given[1:]))
    try:
        return model(**inputs, logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]
    finally:
        handle.remove()


def action_logits(model: nn.Module, tokens: Tensor, mask: Tensor, *, packed: bool | None = None) -> ActionLogits:
    """Logits of every acted position, action-aligned, without computing those of any other position.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L], right-padded; with a causal model, padding on the right cannot reach what is before it, so no
            attention mask is passed and attention takes its fastest path.
        mask: [B, L] True where the policy acted; the first position never is.
        packed: join the rows without padding, as one row whose positions begin again; None: see :func:`packs_rows`.

    Returns:
        logits [B, T, V] in the model's dtype: ``logits[b, t]`` chose ``tokens[b, t]``.
    """
    position, action_mask = action_positions(mask)
    logits = logits_at(model, tokens, mask, (position - 1).clamp_min(0), packed)
    return ActionLogits(logits, tokens.gather(1, position), action_mask)


def sampled_logits(model: nn.Module, tokens: Tensor, mask: Tensor) -> ActionLogits:
    """As :func:`action_logits`, for samples: a prompt that several rows respond to may be computed once."""
    position, action_mask = action_positions(mask)
    logits = logits_at(model, tokens, mask, (position - 1).clamp_min(0), None, sampled=True)
    return ActionLogits(logits, tokens.gather(1, position), action_mask)


def state_logits(model: nn.Module, tokens: Tensor, mask: Tensor, *, packed: bool | None = None) -> ActionLogits:
    """As :func:`action_logits`, with the state after the last action appended.

    Returns:
        logits [B, T+1, V]: row b holds its n acted states s_0 … s_{n−1} and, at n, the state that followed the last
        action: what a truncated sequence bootstraps from.
    """
    position, action_mask = action_positions(mask)
    position = torch.cat([position, torch.zeros_like(position[:, :1])], 1)
    last = mask.long().mul(torch.arange(mask.shape[1], device=mask.device)).amax(1, keepdim=True)
    held = torch.nn.functional.pad(action_mask, (0, 1))
    logits = logits_at(model, tokens, mask, torch.where(held, (position - 1).clamp_min(0), last), packed)
    return ActionLogits(logits, tokens.gather(1, position[:, :-1]), action_mask)


def disable_dropout(model: nn.Module) -> None:
    """Turn every kind of dropout off, whatever mode the model is put in.

    Dropout during policy-gradient training makes the ratio to the behaviour policy noise at the first step.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Many architectures keep a rate as a number and call the functional form.
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
