"""Texts of rows that spell special tokens: encoded as ordinary text, not as the special tokens."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import SETTING, Format
from dpr_lightning.data.conversations import Example
from dpr_lightning.data.messages import Message
from dpr_lightning.data.notices import Notices
from dpr_lightning.data.template_inputs import TemplateInputs
from dpr_lightning.errors import InputError
from dpr_lightning.policies.special_tokens import control_tokens, template_tokens

CONTENT_TAGS = re.compile(r"[<\[]/?(think|thinking|reasoning|answer|tool_calls?|tool_response)[>\]]", re.IGNORECASE)
"""Special tokens that assistants write in their turns: these become tokens wherever a text has them."""
_FIRST_IN_TEXT, _FIRST_OF_FORMAT = 0xF0000, 0x100000
"""Two private planes of Unicode: one character for each special token that a row's text spells, and that the format
writes. Neither a template nor a tokenizer gives them a meaning."""
_PRIVATE, _IN_TEXT = re.compile("[\U000f0000-\U0010ffff]"), re.compile("[\U000f0000-\U000fffff]")


_ESCAPED = re.compile(r"\\U(000f[0-9a-f]{4})")
_copies: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, ...], PreTrainedTokenizerBase]] = (
    WeakKeyDictionary()
)


class SpecialTextEncoder:
    """Encodes texts in which special tokens may be spelled.

    Before a row is rendered, :meth:`protect` replaces spelled special tokens by private characters, which a chat
    template passes through. All special tokens in the rendered text are then the template's. :meth:`encode` replaces
    those by private characters too, restores the spelled ones, and encodes with a copy of the tokenizer in which each
    special token is its private character. Texts that spell none are encoded by the tokenizer itself.

    Special tokens are those that the tokenizer marks so, and other added tokens that the chat template writes around
    plain turns, such as those of roles.

    Args:
        tokenizer: of the policy.
        form: has the chat template, and ``special_text``: ``text`` as above; ``tokens`` encodes spelled special tokens
            as tokens; ``error`` refuses them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: Format) -> None:
        self._tokenizer, self._setting = tokenizer, form.special_text
        controls = control_tokens(tokenizer)
        if form.chat_template is not None:
            added = {token.content: identifier for identifier, token in tokenizer.added_tokens_decoder.items()}
            of_template = template_tokens(tokenizer, form.chat_template, in_plain_turns=True) & set(added)
            controls |= {token: added[token] for token in sorted(of_template)}
        self._identifiers = list(controls.values())
        self._tokens = tuple(controls)
        self._index = {token: index for index, token in enumerate(self._tokens)}
        spelled = [token for token in self._tokens if not CONTENT_TAGS.fullmatch(token)]
        self._starts = frozenset(token[:2] for token in spelled)
        self._spelled, self._any = _pattern(spelled), _pattern(self._tokens)

    def protect(self, example: Example, notices: Notices) -> Example:
        """The row with private characters for special tokens that its texts spell; the same row where there are none.

        Args:
            example: the row.
            notices: counts the rows.

        Raises:
            InputError: names the row and the token.
        """
        spelled: list[str] = []
        private: list[str] = []

        def character(match: re.Match[str]) -> str:
            spelled.append(match.group())
            return chr(_FIRST_IN_TEXT + self._index[match.group()])

        def protected(value: Any) -> Any:
            if isinstance(value, str):
                private.extend(_PRIVATE.findall(value))
                return self._spelled.sub(character, value) if any(start in value for start in self._starts) else value
            if isinstance(value, Mapping):
                return {key: protected(part) for key, part in value.items()}
            if isinstance(value, Message):
                texts = {"content": value.content, "reasoning": value.reasoning}
                return replace(value, **protected({**texts, "tool_calls": value.tool_calls, "fields": value.fields}))
            if isinstance(value, TemplateInputs):
                inputs = {"tools": value.tools, "documents": value.documents, "variables": value.variables}
                return replace(value, **protected(inputs))
            if isinstance(value, list | tuple):
                return type(value)(protected(part) for part in value)
            return value

        texts = {"prompt": example.prompt, "completion": example.completion, "inputs": example.inputs}
        parts = protected(texts)
        if not spelled:
            return example
        if self._setting == "error":
            raise InputError(
                f"{example.location}: a text spells {spelled[0]!r}, which is a special token. Remove it, or set "
                f"`data.{SETTING}` to `text` (encoded as text) or `tokens` (as the token)."
            )
        if self._setting == "tokens":
            notices.add(f"special tokens that texts spell become tokens (`{SETTING}: tokens`)", example.location)
            return example
        if not self._tokenizer.is_fast:
            raise InputError(
                f"{example.location}: a text spells {spelled[0]!r}, which this tokenizer can only make a token. Remove "
                f"it, set `data.{SETTING}: tokens`, or take a tokenizer with a tokenizer.json."
            )
        if private:
            raise InputError(
                f"{example.location}: a text spells {spelled[0]!r} and has the private character "
                f"U+{ord(private[0]):X}. Remove one of them."
            )
        notices.add(f"special tokens that texts spell are encoded as text (`{SETTING}` chooses)", example.location)
        return replace(example, **parts)

    def restore_message(self, message: str) -> str:
        """Undo :meth:`protect` in an error message, in which characters may be escaped."""
        return self.restore(_ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), message))

    def restore(self, text: str) -> str:
        """Undo :meth:`protect` in a text."""
        return _PRIVATE.sub(lambda match: self._token_of(match.group()), text)

    def encode(
        self,
        texts: Sequence[str],
        rows: Sequence[str],
        protected: Sequence[bool],
        add_special_tokens: bool = False,
    ) -> list[list[int]]:
        """Token ids of texts.

        Args:
            texts: rendered, or plain.
            rows: ``file:number`` of each, for messages.
            protected: whether :meth:`protect` changed each one's row.
            add_special_tokens: whether the tokenizer adds its BOS.

        Raises:
            InputError: a text becomes a special token all the same.
        """
        if not texts:
            return []
        encoded = _ids(self._tokenizer, texts, add_special_tokens=add_special_tokens)
        for index in np.flatnonzero(protected).tolist():
            encoded[index] = self._encode_spelled(texts[index], rows[index], add_special_tokens)
        return encoded

    def _encode_spelled(self, text: str, row: str, add_special_tokens: bool) -> list[int]:
        copied = self._copy()
        of_format = self._any.sub(lambda match: chr(_FIRST_OF_FORMAT + self._index[match.group()]), text)
        spelled = _IN_TEXT.sub(lambda match: self._token_of(match.group()), of_format)
        options = {"add_special_tokens": add_special_tokens, "split_special_tokens": True}
        ids, added = _ids(copied, [spelled, ""], **options)
        special = set(self._identifiers)
        if sum(token in special for token in ids) > len(added):
            raise InputError(
                f"{row}: a text spells a special token, and this tokenizer has no other way to write it. Remove it, or "
                f"set `data.{SETTING}: tokens`."
            )
        first = len(self._tokenizer)
        return [self._identifiers[token - first] if token >= first else token for token in ids]

    def _token_of(self, character: str) -> str:
        index = ord(character) - (_FIRST_IN_TEXT if _IN_TEXT.match(character) else _FIRST_OF_FORMAT)
        return self._tokens[index] if index < len(self._tokens) else character

    def _copy(self) -> PreTrainedTokenizerBase:
        """The tokenizer with one more token for each special one: its private character."""
        known = _copies.setdefault(self._tokenizer, {})
        if self._tokens not in known:
            copied = copy.deepcopy(self._tokenizer)
            added = {token.content: token for token in self._tokenizer.added_tokens_decoder.values()}
            for index, token in enumerate(self._tokens):
                original = added[token]
                flags = {"lstrip": original.lstrip, "rstrip": original.rstrip, "single_word": original.single_word}
                # The copy treats the spelled special tokens as text.
                copied.backend_tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
                character = chr(_FIRST_OF_FORMAT + index)
                copied.add_tokens([AddedToken(character, special=False, normalized=False, **flags)])
            known[self._tokens] = copied
        return known[self._tokens]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool) -> list[list[int]]:
    encoded = tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)
    return [list(tokens) for tokens in encoded["input_ids"]]


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens; at each character the longest, as tokenizers do."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
