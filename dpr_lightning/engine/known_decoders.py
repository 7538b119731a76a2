"""Decoders whose layers are known, for which this package has faster forward passes."""

from typing import Any, cast

from torch import nn

KNOWN = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures whose layers are: norm, attention with rotary positions, norm, gated linear units."""


def inside_of_adapters(model: nn.Module) -> Any:
    """The causal language model inside a peft wrapper; the model itself without one."""
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model


def is_known_decoder(model: nn.Module) -> bool:
    """Whether ``model`` is of a known architecture, with attention to all earlier tokens in every layer."""
    config: Any = inside_of_adapters(model).config if hasattr(model, "config") else None
    if getattr(config, "model_type", None) not in KNOWN:
        return False
    layers = set(getattr(config, "layer_types", None) or {"full_attention"})
    windowed = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return layers == {"full_attention"} and windowed is None


def is_silu(activation: Any) -> bool:
    """Whether a gate is x·sigmoid(x)."""
    return type(activation).__name__ in ("SiLU", "SiLUActivation")
