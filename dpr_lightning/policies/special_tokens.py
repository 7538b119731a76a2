"""The tokens that begin, end and pad a policy's sequences, determined by one function for the whole package."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import jinja2
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dpr_lightning.engine import inside_of_adapters
from dpr_lightning.errors import InputError
from dpr_lightning.model_options import ModelOptions, stops_of
from dpr_lightning.policies.adapters import base_of, is_adapter

log = logging.getLogger(__name__)
EXPLICIT_PAD = "explicit_padding"
"""Key of tokenizer_config.json for a pad token that the user chose, which may be the EOS itself.

transformers treats keys that end in ``_token`` as special tokens, so this one does not.
"""
_BRACKETED = re.compile(r"[<\[({>].+[>\])}<]", re.DOTALL)
_RESERVED = (
    re.compile(r"pad|padding|pad_token|pad_id|.*_?right_pad(_.*)?"),
    re.compile(r"(.*_)?(reserved|unused|placeholder|dummy)(_.*|\d.*)?|(extra|extra_id|control)_?\d+"),
    re.compile(r"(vision|fim)_pad"),
    re.compile(r".*_pad"),
)
"""Names of reserved tokens, best first, in lower case and with other characters replaced by ``_``."""
_PROBES: tuple[tuple[dict[str, Any], ...], ...] = tuple(
    tuple({"role": role, "content": "a"} for role in roles)
    for roles in (("user", "assistant"), ("system", "user", "assistant", "user"), ("user", "assistant", "user"))
)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens of a policy.

    Args:
        bos: begins every text; None: none does.
        eos: the tokenizer's end of a text.
        stops: every token that ends an answer, EOS first.
        pad: fills rows. A checkpoint may pad with one of ``stops``: padding is distinguished from the end of an answer
            by masks and lengths, never by the id.
        unk: replaces text that the vocabulary has no token for; None: there is none, or it is a stop.
    """

    bos: int | None
    eos: int
    stops: tuple[int, ...]
    pad: int
    unk: int | None


def special_tokens(
    tokenizer: PreTrainedTokenizerBase,
    policy: nn.Module | str | None = None,
    *,
    chat_template: str | None = None,
    end_of_turn: str | None = None,
    pad_token: str | None = None,
    required: bool = False,
) -> SpecialTokens:
    """Determine the special tokens of a policy.

    Stops are the tokenizer's EOS, those of the policy's generation configuration (of its configuration, where that one
    names none, as in transformers) and ``end_of_turn``. The pad token is the one that the checkpoint names, unless that
    is EOS, BOS, ``end_of_turn`` or a token that the chat template writes; then it is a reserved token, or ``<unk>``
    where no text becomes ``<unk>``.

    Args:
        tokenizer: of the policy.
        policy: the model, or its folder or hub id; None: use the tokenizer alone.
        chat_template: that the policy is trained and queried with; None: the tokenizer's.
        end_of_turn: token that closes the assistant's turn.
        pad_token: the user's choice.
        required: whether a tokenizer without a token that could pad is an error; otherwise its EOS pads.

    Raises:
        InputError: a token is not in the vocabulary, or none can pad.
    """
    eos, bos, unk = int(tokenizer.eos_token_id), tokenizer.bos_token_id, tokenizer.unk_token_id
    meaningful = {eos} if bos is None else {eos, bos}
    stops = [eos, *_configured_stops(policy)]
    if end_of_turn is not None:
        closing = token_id(tokenizer, end_of_turn)
        if closing is None:
            raise InputError(
                f"`end_of_turn` {end_of_turn!r} is no token of the tokenizer {tokenizer.name_or_path!r}. Name one of "
                f"its special tokens: {', '.join(map(repr, list(control_tokens(tokenizer))[:12]))}."
            )
        stops.append(closing)
        meaningful.add(closing)
    of_template = (token_id(tokenizer, token) for token in template_tokens(tokenizer, chat_template))
    meaningful |= {identifier for identifier in of_template if identifier is not None}
    pad = _pad(tokenizer, pad_token, meaningful, set(stops), required)
    return SpecialTokens(bos, eos, tuple(dict.fromkeys(stops)), pad, None if unk in stops else unk)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of a token; None where the vocabulary does not have it."""
    identifier: Any = tokenizer.convert_tokens_to_ids(token)
    known = identifier is not None and tokenizer.convert_ids_to_tokens(identifier) == token
    return int(identifier) if known else None


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens that are marked as special, and the tokenizer's named ones, with their ids in ascending order."""
    marked = {
        token.content: identifier for identifier, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    named = {str(token): token_id(tokenizer, str(token)) for token in tokenizer.all_special_tokens}
    tokens = marked | {token: identifier for token, identifier in named.items() if identifier is not None}
    return dict(sorted(tokens.items(), key=lambda pair: pair[1]))


def set_padding(tokenizer: PreTrainedTokenizerBase, special: SpecialTokens, pad_token: str | None = None) -> None:
    """Set the pad token of ``tokenizer``, and save an explicit choice with it.

    Args:
        tokenizer: changed in place.
        special: from :func:`special_tokens`.
        pad_token: the user's choice; None without one.
    """
    if pad_token is not None:
        tokenizer.init_kwargs[EXPLICIT_PAD] = pad_token
    if tokenizer.pad_token_id == special.pad:
        return
    before = "no pad token" if tokenizer.pad_token is None else f"a pad token with a meaning, {tokenizer.pad_token!r}"
    tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(special.pad))
    if pad_token is None and special.pad != special.eos:
        _warn_once(
            f"The tokenizer at {tokenizer.name_or_path} had {before}; {tokenizer.pad_token!r} now pads "
            "(`model.policy.pad_token` chooses another)."
        )


@cache
def _warn_once(message: str) -> None:
    """Log a warning once in this process: the data and the policy in training each load a tokenizer."""
    log.warning("%s", message)


def carry_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> None:
    """Write the pad token into a model's configurations where they need it; called before it is trained and saved.

    A pad token that the checkpoint names is kept where it is named, and written nowhere else: if it is a stop, other
    programs would mask the end of every answer.

    Args:
        model: changed in place.
        tokenizer: pads with ``special.pad`` already.
        special: from :func:`special_tokens`.
    """
    named_by_checkpoint = str(tokenizer.init_kwargs.get("pad_token")) == tokenizer.pad_token
    single = inside_of_adapters(model)
    if not isinstance(single, PreTrainedModel):
        return
    text = single.config.get_text_config()
    configs: list[tuple[PreTrainedConfig | GenerationConfig, int | None]] = [(text, ModelOptions(text).pad)]
    if single.can_generate():
        configs.append((single.generation_config, single.generation_config.pad_token_id))
    for config, current in configs:
        if (current is None and not named_by_checkpoint) or (current in special.stops and current != special.pad):
            config.pad_token_id = special.pad
    embedding = single.get_input_embeddings()
    if isinstance(embedding, nn.Embedding) and embedding.padding_idx in special.stops:
        embedding.padding_idx = None  # the padding row gets no gradient, but a stop inside conversations needs one


def template_tokens(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, *, in_plain_turns: bool = False
) -> frozenset[str]:
    """Tokens that a chat template writes: those in its source, and those in conversations rendered with it.

    Args:
        tokenizer: of the policy.
        chat_template: in Jinja; None: the tokenizer's.
        in_plain_turns: only those in short conversations without tools.
    """
    template = chat_template if chat_template is not None else tokenizer.chat_template
    if not template:
        return frozenset()
    sources = list(template.values()) if isinstance(template, dict) else [template]
    known = _template_tokens.setdefault(tokenizer, {})
    key = (*sources, str(tokenizer.bos_token), str(tokenizer.eos_token))
    if key not in known:
        known[key] = _find_template_tokens(tokenizer, sources)
    return known[key][in_plain_turns]


_template_tokens: WeakKeyDictionary[
    PreTrainedTokenizerBase, dict[tuple[str, ...], tuple[frozenset[str], frozenset[str]]]
] = WeakKeyDictionary()


def _find_template_tokens(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """All tokens that templates write, and those in plain turns."""
    named = {str(token) for token in tokenizer.all_special_tokens}
    named |= {token.content for token in tokenizer.added_tokens_decoder.values()}
    probes = [text for source in sources for text in _rendered_probes(tokenizer, source)]
    in_turns = frozenset(token for token in named if any(token in text for text in probes))
    variables = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "unk_token": tokenizer.unk_token}
    in_source = {token for token in named if any(token in source for source in sources)}
    in_source |= {str(token) for name, token in variables.items() if token and name in "".join(sources)}
    return in_turns | in_source, in_turns


def _rendered_probes(tokenizer: PreTrainedTokenizerBase, template: str) -> Iterator[str]:
    """Rendered short conversations, of those that the template accepts."""
    for messages in _PROBES:
        for prompt in (False, True):
            try:
                yield str(
                    tokenizer.apply_chat_template(
                        list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
                    )
                )
            except (jinja2.TemplateError, TypeError, ValueError):
                continue


def _configured_stops(policy: nn.Module | str | None) -> list[int]:
    """Stop tokens in the policy's files, or in its configuration in memory."""
    if policy is None:
        return []
    if isinstance(policy, str):
        return _saved_stops(policy)
    single = inside_of_adapters(policy)
    if not isinstance(single, PreTrainedModel):
        return []
    stops = stops_of(single.generation_config.eos_token_id) if single.can_generate() else []
    return stops or ModelOptions.of_text(single.config).stops


def _saved_stops(source: str) -> list[int]:
    try:
        stops = stops_of(GenerationConfig.from_pretrained(source).eos_token_id)
    except OSError:  # there is none
        stops = []
    if stops:
        return stops
    if is_adapter(source):
        base = base_of(source).source
        return _saved_stops(base) if base is not None else []
    try:
        return ModelOptions.of_text(AutoConfig.from_pretrained(source, trust_remote_code=False)).stops
    except (OSError, ValueError, KeyError):  # a tokenizer alone, a GGUF file, code that is not trusted
        return []


def _pad(
    tokenizer: PreTrainedTokenizerBase, explicit: str | None, meaningful: set[int], stops: set[int], required: bool
) -> int:
    """The id of the pad token; see :func:`special_tokens`."""
    eos = int(tokenizer.eos_token_id)
    if explicit is not None:
        return _explicit_pad(tokenizer, explicit, meaningful - {eos})
    current = tokenizer.pad_token_id
    if current is not None:
        current = int(current)
        if current not in meaningful or tokenizer.init_kwargs.get(EXPLICIT_PAD) == tokenizer.pad_token:
            return current
    free = next((token for token in _reserved(tokenizer) if token not in meaningful | stops), None)
    if free is not None:
        return free
    unk = tokenizer.unk_token_id
    if unk is not None and unk not in meaningful | stops and not _text_becomes_unknown(tokenizer):
        return int(unk)
    if not required:
        return eos
    named = control_tokens(tokenizer)
    unused = [repr(token) for token, identifier in named.items() if identifier not in meaningful | stops]
    choice = f"to a special token that your data do not use ({', '.join(unused[:6])}), or " if unused else ""
    pads = "has no pad token" if current is None else f"pads with {tokenizer.pad_token!r}, which has another meaning"
    raise InputError(
        f"The tokenizer at {tokenizer.name_or_path!r} {pads}, and no reserved token could pad. Set "
        f"`model.policy.pad_token` (`pad_token` of `dpr export`) {choice}to {tokenizer.eos_token!r}, its EOS: padding "
        "is then distinguished from stops by lengths here, but programs that mask every pad token would hide the end "
        "of answers."
    )


def _explicit_pad(tokenizer: PreTrainedTokenizerBase, token: str, meaningful: set[int]) -> int:
    identifier = token_id(tokenizer, token)
    if identifier is None:
        raise InputError(
            f"`model.policy.pad_token` {token!r} is no token of the tokenizer {tokenizer.name_or_path!r}. Name one of "
            f"its special tokens: {', '.join(map(repr, list(control_tokens(tokenizer))[:12]))}."
        )
    if identifier in meaningful:
        raise InputError(
            f"`model.policy.pad_token` {token!r} has a meaning: it is BOS, closes a turn, or the chat template writes "
            "it. Choose a reserved token, or the EOS."
        )
    return identifier


def _reserved(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of tokens whose name marks them as reserved, best first."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    ranked = []
    for name, identifier in tokenizer.get_vocab().items():
        if not _BRACKETED.fullmatch(name):
            continue
        core = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        rank = next((rank for rank, names in enumerate(_RESERVED) if names.fullmatch(core)), None)
        # An ordinary token may look reserved although text becomes it; the name of a pad token is unambiguous.
        if rank is None or (name not in added and rank > 0):
            continue
        ranked.append((rank, not added.get(name, False), int(identifier)))
    return [identifier for *_, identifier in sorted(ranked)]


def _text_becomes_unknown(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether some text becomes ``<unk>``, tested with characters whose UTF-8 uses every byte."""
    points: Sequence[int] = [*range(1, 0x800), *range(0x800, 0xD800, 0x800), *range(0xE000, 0x110000, 0x10000)]
    ids = tokenizer("".join(map(chr, points)), add_special_tokens=False, verbose=False)["input_ids"]
    return tokenizer.unk_token_id in ids
