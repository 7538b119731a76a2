"""The argument of a model's forward pass that takes its key-value cache: transformers renamed it in version 5.24."""

import inspect

from torch import nn

from dpr_lightning.engine.known_decoders import inside_of_adapters

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""Names under which models take and return a cache of transformers, newest first."""


def cache_argument(model: nn.Module) -> str:
    """The name under which ``model`` takes a cache of transformers.

    Raises:
        ValueError: it takes none.
    """
    for name in CACHE_ARGUMENTS:
        if takes_argument(model, name):
            return name
    raise ValueError("its forward pass takes no cache")


def takes_argument(model: nn.Module, name: str) -> bool:
    """Whether a model's forward pass, adapters aside, has an argument of this name."""
    return name in inspect.signature(inside_of_adapters(model).forward).parameters
