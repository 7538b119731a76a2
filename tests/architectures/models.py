"""A random model of each tiny configuration."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.architectures.registry import TINY, VOCABULARY


def tiny_config(kind: str, **more: Any) -> Any:
    """The configuration of an architecture, with pad 0, and 1 as BOS and EOS."""
    special = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return AutoConfig.for_model(kind, **(special | TINY[kind] | more))


def tiny_model(kind: str, seed: int = 0, **more: Any) -> nn.Module:
    """A model whose weights are large enough for tokens to matter; in evaluation mode."""
    config = tiny_config(kind, **more)
    causal = type(config) in AutoModelForCausalLM._model_mapping
    auto: Any = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = auto.from_config(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.2)
    return model.eval()
