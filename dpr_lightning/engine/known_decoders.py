"""Decoders whose layers are known, for which this package has faster forward passes."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from dpr_lightning.model_options import ModelOptions

if TYPE_CHECKING:
    from peft import PeftModel

KNOWN = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures whose layers are: norm, attention with rotary positions, norm, gated linear units."""


def has_adapters(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether ``model`` has adapters of peft."""
    peft = sys.modules.get("peft")  # optional and slow to import; no model has adapters before it is imported
    return peft is not None and isinstance(model, peft.PeftModel)


def inside_of_adapters(model: nn.Module) -> Any:
    """The causal language model inside a peft wrapper; the model itself without one."""
    return model.get_base_model() if has_adapters(model) else model


def attention_of(model: nn.Module) -> str | None:
    """transformers' name of the implementation of attention; None for a module of another kind."""
    single = inside_of_adapters(model)
    return single.config._attn_implementation if isinstance(single, PreTrainedModel) else None


def is_known_decoder(model: nn.Module) -> bool:
    """Whether ``model`` is of a known architecture, with attention to all earlier tokens in every layer."""
    single = inside_of_adapters(model)
    if not isinstance(single, PreTrainedModel) or single.config.model_type not in KNOWN:
        return False
    options = ModelOptions(single.config)
    windowed = single.config.model_type == "mistral" and options.sliding_window is not None
    return options.layers <= {"full_attention"} and not windowed


def is_silu(activation: Any) -> bool:
    """Whether a gate is x·sigmoid(x)."""
    return type(activation).__name__ in ("SiLU", "SiLUActivation")
