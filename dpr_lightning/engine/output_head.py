"""Output heads whose product is the logits, so that their input can be processed in blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpr_lightning.engine.known_decoders import inside_of_adapters
from dpr_lightning.engine.model_mode import evaluating

_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether the logits of a model are the output of its head, unchanged."""


def output_head(model: nn.Module) -> nn.Module:
    """The output head of a causal language model of transformers."""
    head: nn.Module = cast(Any, model).get_output_embeddings()
    return head


def bare_head(model: nn.Module) -> nn.Linear | None:
    """The output head, where it is a linear layer without a bias."""
    head = output_head(model) if isinstance(inside_of_adapters(model), PreTrainedModel) else None
    return head if type(head) is nn.Linear and head.bias is None else None


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The bare head of a model whose logits are the output of that head, unchanged; tried once a model."""
    head = bare_head(model)
    if head is None:
        return None
    if model not in _plain:
        _plain[model] = _ends_with_its_head(model, head)
    return head if _plain[model] else None


@contextmanager
def head_does(head: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the head's forward pass by ``compute`` inside the context; its hooks still run."""
    patched: Any = head
    patched.forward = compute
    try:
        yield
    finally:
        del patched.forward


def states_at(hidden: Tensor, index: Tensor) -> Tensor:
    """The states [..., D] of ``hidden`` [B, L, D] at ``index`` [...], counted through all rows."""
    return hidden.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, hidden.shape[-1])


@torch.no_grad()
def _ends_with_its_head(model: nn.Module, head: nn.Linear) -> bool:
    """Whether a model returns its head's output unchanged, tried on a few tokens: no configuration says so."""
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
    try:
        # Several tokens: the embedding of the padding token is 0, and so are its logits, capped or not.
        tokens = torch.arange(min(8, head.out_features), device=head.weight.device).unsqueeze(0)
        with evaluating([model]):  # without random numbers: a resumed run tries again
            logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
    return len(seen) == 1 and seen[0].shape == logits.shape and bool(torch.equal(seen[0], logits))
