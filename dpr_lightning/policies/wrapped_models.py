"""What a policy's module is: a model of transformers, with or without adapters of peft around it."""

from torch import nn
from transformers import PreTrainedModel

from dpr_lightning.engine import has_adapters, inside_of_adapters


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
