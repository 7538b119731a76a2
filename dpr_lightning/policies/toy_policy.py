"""A policy of about a million parameters, written as an ordinary Hugging Face folder.

It is loaded and trained like any other model.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpr_lightning.folders import whole_folder


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a character of ``texts``, after pad, EOS and unknown."""
    tokenizer = _vocabulary(set("".join(texts)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word of ``texts``, after pad, EOS and unknown; words are separated by white space."""
    tokenizer = _vocabulary({word for text in texts for word in text.split()})
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(tokenizer)


def _vocabulary(tokens: set[str]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *sorted(tokens)])}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=1024
    )


def create_toy_policy(
    folder: str | Path,
    texts: Iterable[str],
    *,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    seed: int = 0,
    words: bool = False,
) -> Path:
    """Write a randomly initialised Llama and a tokenizer for ``texts`` into ``folder``.

    The tokens are characters, or with ``words`` the words between spaces. With the default sizes the model has about
    0.9 million parameters.
    """
    folder = Path(folder)
    tokenizer = word_tokenizer(texts) if words else character_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder
