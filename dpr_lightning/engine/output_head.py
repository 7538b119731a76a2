"""Output heads whose products are the logits: what they are given can be worked on in blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpr_lightning.engine.model_mode import evaluating

_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether the logits of a model are its head's product with the hidden states, and nothing else."""


def bare_head(model: nn.Module) -> nn.Linear | None:
    """The output head, where it is a product with a matrix and no more."""
    get_head: Any = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    return head if type(head) is nn.Linear and head.bias is None else None


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The bare head of a model whose logits are nothing but what that head computes; found out once."""
    head = bare_head(model)
    if head is None:
        return None
    if model not in _plain:
        _plain[model] = _ends_with_its_head(model, head)
    return head if _plain[model] else None


@contextmanager
def head_does(head: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
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
