"""Forward passes for training and scoring, with logits only where the policy acted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpr_lightning.engine.model_inputs import Inputs, model_inputs
from dpr_lightning.engine.output_head import output_head, states_at
from dpr_lightning.functional import action_positions


class ActionLogits(NamedTuple):
    """``logits`` [B, T, V] that ``tokens`` [B, T] were sampled from; ``mask`` [B, T] is True for real actions."""

    logits: Tensor
    tokens: Tensor
    mask: Tensor


@contextmanager
def _head_reads(model: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass ``select(hidden)`` instead of the hidden states to the output head inside the context.

    A hook on the head, so that what an architecture does to its logits afterwards (soft caps, scaling) still happens.
    """
    handle = output_head(model).register_forward_pre_hook(
        lambda _module, arguments: (select(arguments[0]), *arguments[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: nn.Module, tokens: Tensor, mask: Tensor, state: Tensor, *, sampled: bool = False) -> Tensor:
    """Logits [B, S, V] at the positions ``state`` [B, S] of each row; other arguments as in :func:`action_logits`.

    With ``sampled``, prompts that several rows answer may be read once; then no ``state`` may be inside a prompt.
    """
    inputs, start = model_inputs(model, tokens, mask, sampled=sampled)
    return logits_of_inputs(model, inputs, (start.unsqueeze(1) + state).clamp_min(0))


def logits_of_inputs(model: nn.Module, inputs: Inputs, index: Tensor) -> Tensor:
    """Logits [B, S, V] of prepared inputs at the states ``index`` [B, S], counted through all rows."""
    with _head_reads(model, lambda hidden: states_at(hidden, index)):
        logits: Tensor = model(**inputs).logits
    return logits


def last_logits(model: nn.Module, **inputs: Any) -> Tensor:
    """Logits [B, V] after the last token of each row of ``inputs``.

    The head gets those states in a contiguous tensor. With a slice of all states, PyTorch on a CPU in half precision
    would copy the head's weights for every row: 4 of the 11 s that the prefill of 64 prompts of 128 tokens took.
    """
    with _head_reads(model, Tensor.contiguous):
        logits: Tensor = model(**inputs, logits_to_keep=1).logits
    return logits[:, -1]


def action_logits(model: nn.Module, tokens: Tensor, mask: Tensor) -> ActionLogits:
    """Logits of every acted position, action-aligned, without computing those of any other position.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        tokens: [B, L], right-padded; a causal model does not attend to later padding, so no attention mask is passed
            and attention takes its fastest path.
        mask: [B, L] True where the policy acted; the first position never is.

    Returns:
        logits [B, T, V] in the model's dtype: ``logits[b, t]`` are those of ``tokens[b, t]``.
    """
    position, action_mask = action_positions(mask)
    logits = logits_at(model, tokens, mask, position - 1)
    return ActionLogits(logits, tokens.gather(1, position), action_mask)


def sampled_logits(model: nn.Module, tokens: Tensor, mask: Tensor) -> ActionLogits:
    """As :func:`action_logits`, for samples: a prompt that several rows respond to may be computed once."""
    position, action_mask = action_positions(mask)
    logits = logits_at(model, tokens, mask, position - 1, sampled=True)
    return ActionLogits(logits, tokens.gather(1, position), action_mask)


def state_logits(model: nn.Module, tokens: Tensor, mask: Tensor) -> ActionLogits:
    """As :func:`action_logits`, with the state after the last action appended.

    Returns:
        logits [B, T+1, V]: of the n acted states s_0 … s_{n−1} of a row and, at n, of the state after its last action,
        from which a truncated sequence bootstraps.
    """
    position, action_mask = action_positions(mask)
    position = torch.cat([position, torch.zeros_like(position[:, :1])], 1)
    last = mask.long().mul(torch.arange(mask.shape[1], device=mask.device)).amax(1, keepdim=True)
    is_action = torch.nn.functional.pad(action_mask, (0, 1))
    logits = logits_at(model, tokens, mask, torch.where(is_action, position - 1, last))
    return ActionLogits(logits, tokens.gather(1, position[:, :-1]), action_mask)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate of ``model`` to 0, for training mode as well.

    With dropout, the ratio of a policy to the one that sampled would be noise at the first step.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Many architectures store a rate as a float and call the functional form.
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
