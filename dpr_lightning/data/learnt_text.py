"""Warns where tokens to learn differ from their row's text: they are `<unk>`, or the tokenizer changes the text."""

import unicodedata
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import Format
from dpr_lightning.data.conversations import Example
from dpr_lightning.data.notices import Notices
from dpr_lightning.rollouts import decode_tokens

_NAMED = 12
"""Texts without a token that a message names."""


def unknown_token(tokenizer: PreTrainedTokenizerBase, form: Format) -> int | None:
    """The id of ``<unk>``; None where there is none, or where it ends turns, as in GPT-2."""
    unknown = tokenizer.unk_token_id
    return None if unknown is None or unknown in form.stop_ids else int(unknown)


def notice_altered(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], expected: str, row: str, notices: Notices
) -> None:
    """Count a row whose tokens to learn do not decode to its text.

    White space at both ends and Unicode composition may differ: tokenizers put a space before a text, and some compose
    characters. Rows with `<unk>` are counted by :class:`UnknownTokens`.

    Args:
        tokenizer: of the policy.
        tokens: to learn, of one turn.
        expected: the row's text, which begins with theirs.
        row: its ``file:number``.
        notices: counts.
    """
    if tokenizer.unk_token_id in tokens:
        return
    decoded = unicodedata.normalize("NFC", decode_tokens(tokenizer, tokens)).strip()
    if not unicodedata.normalize("NFC", expected).lstrip().startswith(decoded):
        notices.add("the tokens to learn do not decode to the row's text, for the tokenizer changes it", row)


class UnknownTokens:
    """Counts tokens to learn that are `<unk>`, and names the characters or words that became `<unk>`.

    Args:
        tokenizer: of the policy.
        form: its stop tokens are not counted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: Format) -> None:
        self._tokenizer, self._unknown = tokenizer, unknown_token(tokenizer, form)
        self._texts: dict[str, None] = {}
        self._first = ""
        self.count = 0

    def add(self, example: Example, learnt: Iterable[int]) -> None:
        """Count the `<unk>` tokens of a row."""
        count = sum(token == self._unknown for token in learnt)
        if self._unknown is None or count == 0:
            return
        self.count += count
        self._first = self._first or example.location
        if len(self._texts) < _NAMED:
            text = "\n".join(message.text for message in example.completion_messages())
            self._texts |= dict.fromkeys(self._without_token(list(text)) or self._without_token(text.split()))

    def sentence(self, learnt: int) -> str:
        """The counts as a sentence; empty where there is no `<unk>`.

        Args:
            learnt: tokens to learn in all rows.
        """
        if self.count == 0:
            return ""
        named = ", ".join(map(repr, list(self._texts)[:_NAMED])) or "some of the text"
        return (
            f"{self.count:,} of {learnt:,} tokens to learn are {self._tokenizer.unk_token!r}: the tokenizer has no "
            f"token for {named} (first {self._first})."
        )

    def _without_token(self, texts: Iterable[str]) -> list[str]:
        different = list(dict.fromkeys(texts))
        if not different:
            return []
        encoded = self._tokenizer(different, add_special_tokens=False, verbose=False)["input_ids"]
        return [text for text, ids in zip(different, encoded, strict=True) if self._unknown in ids]
