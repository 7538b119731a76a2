"""Tokenizers whose padding never shares a token with the end of a sequence."""

import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from dpr_lightning.errors import InputError, first_line

log = logging.getLogger(__name__)
PAD_CANDIDATES = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def load_tokenizer(
    source: str, gguf_file: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it has an EOS token and a pad token that is not the EOS.

    Padding never enters a loss here, for masks decide and not token ids; the distinct pad token keeps exported
    policies safe in programs that do mask by id. No token is ever added, so the embedding keeps its size.

    Raises:
        InputError: there is no tokenizer at ``source``, or it has no EOS token.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        held = ""
        if Path(source).is_dir():
            names = sorted(path.name for path in Path(source).iterdir())[:12]
            held = f" The folder holds: {', '.join(names) or 'nothing'}."
        raise InputError(
            f"No tokenizer could be loaded from {source!r}.{held} Point `tokenizer` at a hub id or at a folder with "
            f"tokenizer.json and tokenizer_config.json. ({first_line(error)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer at {source!r} has no EOS token, so a policy could never end its answer. Set `eos_token` "
            "in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _choose_pad_token(tokenizer, source)
    tokenizer.padding_side = "right"
    return tokenizer


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give padding a token of its own among those the vocabulary already has."""
    vocabulary = tokenizer.get_vocab()
    special = [str(token) for token in tokenizer.all_special_tokens]
    for candidate in (*PAD_CANDIDATES, *special):
        if candidate in vocabulary and vocabulary[candidate] != tokenizer.eos_token_id:
            had = "no pad token" if tokenizer.pad_token_id is None else "a pad token equal to its EOS"
            tokenizer.pad_token = candidate
            log.warning("The tokenizer at %s had %s; %r now pads.", source, had, candidate)
            return
    raise InputError(
        f"The tokenizer at {source!r} has no pad token and no special token that could serve. Set `pad_token` in its "
        "tokenizer_config.json to a token that is not the EOS."
    )


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> list[int]:
    """The token ids that end an answer: the tokenizer's EOS first, then those of the model's generation config."""
    return _stops(tokenizer, getattr(model, "generation_config", None))


def saved_stop_token_ids(tokenizer: PreTrainedTokenizerBase, source: str) -> list[int]:
    """The token ids that end an answer of the policy in a folder or on the hub, without loading the policy."""
    try:
        return _stops(tokenizer, GenerationConfig.from_pretrained(source))
    except OSError:  # it has none
        return _stops(tokenizer, None)


def _stops(tokenizer: PreTrainedTokenizerBase, generation: Any) -> list[int]:
    stops = [int(tokenizer.eos_token_id)]
    configured = getattr(generation, "eos_token_id", None)
    if configured is not None:
        stops += [int(token) for token in (configured if isinstance(configured, list) else [configured])]
    return [stop for stop in dict.fromkeys(stops) if stop != tokenizer.pad_token_id]


def same_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> str | None:
    """None when two tokenizers give every token the same id; otherwise the first difference, in words."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    for token, identifier in sorted(ours.items(), key=lambda held: held[1]):
        if theirs.get(token) != identifier:
            return f"token {token!r} has id {identifier} in one and {theirs.get(token)} in the other"
    if len(ours) != len(theirs):
        return f"one has {len(ours)} tokens, the other {len(theirs)}"
    if first.eos_token_id != second.eos_token_id:
        return f"EOS is {first.eos_token!r} in one and {second.eos_token!r} in the other"
    return None
