"""What a policy's module is: a model of transformers, with or without adapters of peft around it."""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from dpr_lightning.engine import inside_of_adapters

if TYPE_CHECKING:
    from peft import PeftModel


def has_adapters(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether ``model`` has adapters of peft."""
    peft = sys.modules.get("peft")  # optional and slow to import; no model has adapters before it is imported
    return peft is not None and isinstance(model, peft.PeftModel)


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model of transformers inside of adapters, or without them the model itself.

    Raises:
        TypeError: it is a module of another kind.
    """
    single = inside_of_adapters(model)
    if not isinstance(single, PreTrainedModel):
        raise TypeError(f"{type(single).__name__} is no model of transformers.")
    return single


def recompute_layers(model: nn.Module) -> None:
    """Save no activations within a layer: the backward pass runs its forward pass again."""
    single = transformers_model(model)
    single.gradient_checkpointing_enable({"use_reentrant": False})
    if has_adapters(model):  # the embeddings are frozen, and a layer is run again only for inputs with a gradient
        single.enable_input_require_grads()
