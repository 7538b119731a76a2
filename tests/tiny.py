"""A policy small enough for a unit test, in the form that every other policy has: a Hugging Face folder."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dpr_lightning.policies import character_tokenizer, create_toy_policy

DECODER: dict[str, int] = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Sizes of a decoder whose queries share keys, for configs of several architectures."""
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ+-*/=.,:;?!()>\n"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; pad (0) and EOS (1) are tokens of their own."""
    return character_tokenizer([ALPHABET])


def write_tiny_policy(folder: Path, *, seed: int = 0, hidden_size: int = 32, layers: int = 2) -> Path:
    """Write a randomly initialised Llama, about 30,000 parameters, and its tokenizer into ``folder``."""
    return create_toy_policy(folder, [ALPHABET], hidden_size=hidden_size, layers=layers, heads=2, seed=seed)


def decoder(kind: str, **more: Any) -> nn.Module:
    """A random model of an architecture's name in transformers, with the sizes of ``DECODER``."""
    make: Any = AutoModelForCausalLM.from_config
    model: nn.Module = make(AutoConfig.for_model(kind, **(DECODER | more)))
    return model


def write_decoder(folder: Path, kind: str, **more: Any) -> str:
    """Write a random model of an architecture's name, with the vocabulary of :func:`tiny_tokenizer`, and that."""
    tokenizer = tiny_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model: Any = decoder(kind, vocab_size=len(tokenizer), **special, **more)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def unknown_decoder() -> nn.Module:
    """A random model whose insides are none that this package knows."""
    make: Any = AutoModelForCausalLM.from_config
    model: nn.Module = make(AutoConfig.for_model("gpt2", vocab_size=50, n_embd=32, n_layer=1, n_head=2))
    return model


def with_adapters(model: nn.Module) -> nn.Module:
    """Adapters with random weights on every linear layer."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)  # type: ignore[arg-type]
    adapted: nn.Module = get_peft_model(model, config)  # type: ignore[arg-type]
    return adapted
