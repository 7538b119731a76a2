"""Loads tokenizers, with a pad token that is not a stop token where the tokenizer has one."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpr_lightning.errors import InputError, first_line
from dpr_lightning.policies.mistaken_paths import not_a_policy
from dpr_lightning.policies.special_tokens import set_padding, special_tokens


def load_tokenizer(
    source: str,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    *,
    pad_token: str | None = None,
    for_training: bool = False,
    revision: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has an EOS and a pad token, as :func:`special_tokens` decides.

    Padding never enters a loss here, because masks decide, not token ids; a pad token without another meaning keeps
    exported policies safe in programs that mask by id. No token is ever added, so the embedding keeps its size.

    Args:
        source: hub id or folder.
        gguf_file: GGUF file in ``source`` that holds the tokenizer.
        trust_remote_code: run code that comes with the tokenizer.
        pad_token: the user's choice.
        for_training: the tokenizer will be saved with a policy: refuse it where only a stop could pad. Otherwise
            that stop pads.
        revision: branch, tag or commit of a hub id.

    Raises:
        InputError: there is no tokenizer at ``source``, it has no EOS token, or none that can pad.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    if revision is not None:
        options["revision"] = revision
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        if (reason := not_a_policy(source)) is not None:
            raise InputError(reason) from error
        files, remedy = (
            "",
            "Point `tokenizer` at a hub id or at a folder with tokenizer.json and tokenizer_config.json.",
        )
        if Path(source).is_dir():
            names = sorted(path.name for path in Path(source).iterdir() if path.name[0] != ".")[:12]
            files = f" The folder holds: {', '.join(names) or 'nothing'}."
            remedy = (
                "Copy tokenizer.json and tokenizer_config.json of its base into it, or, where a policy is trained, "
                "point `model.policy.tokenizer` at a folder or hub id that has them."
            )
        raise InputError(
            f"No tokenizer could be loaded from {source!r}.{files} {remedy} ({first_line(error)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer at {source!r} has no EOS token, so a policy could never end its answer. Set `eos_token` "
            "in its tokenizer_config.json."
        )
    special = special_tokens(tokenizer, source, pad_token=pad_token, required=for_training)
    set_padding(tokenizer, special, pad_token)
    tokenizer.padding_side = "right"
    return tokenizer


def same_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> str | None:
    """None if two tokenizers give every token the same id; otherwise the first difference, as words."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    for token, identifier in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != identifier:
            return f"token {token!r} has id {identifier} in one and {theirs.get(token)} in the other"
    if len(ours) != len(theirs):
        return f"one has {len(ours)} tokens, the other {len(theirs)}"
    if first.eos_token_id != second.eos_token_id:
        return f"EOS is {first.eos_token!r} in one and {second.eos_token!r} in the other"
    return None
