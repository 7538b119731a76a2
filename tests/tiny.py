"""A policy small enough for a unit test, in the form that every other policy has: a Hugging Face folder."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dpr_lightning.policies import character_tokenizer, create_toy_policy

DECODER = {
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
