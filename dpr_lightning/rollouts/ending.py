"""What ends an answer: a token, or a text, whatever tokens it is written with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.rollouts.decode import decode_tokens

_ANCHOR = "a"
_MARGIN = 8
"""Tokens decoded before those that can be of a stop string: the text of the first ones depends on what is missing."""
_PARTIAL = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class _Vocabulary:
    """``finishing`` [V] bool: whether each token could complete a stop string; ``partial``: those that are a part of a
    character, or a byte that is decoded together with its neighbours."""

    finishing: Tensor
    partial: frozenset[int]


_read: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, ...], _Vocabulary]] = WeakKeyDictionary()


class StopStrings:
    """Texts at which an answer ends, with the token that completes the first of them.

    That token may say more than the stop string does, and belongs to the answer whole. An answer is looked at only when
    one of the few tokens is drawn that could complete a stop string.

    The text is that of :func:`dpr_lightning.rollouts.decode_answers`: special tokens inside answers are text of them,
    and a stop string may have some in it.

    Args:
        strings: that end an answer.
        tokenizer: decodes answers.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._strings, self._tokenizer = tuple(strings), tokenizer
        # Every token writes a byte or more.
        self._width = _MARGIN + max(len(string.encode()) for string in self._strings)
        vocabularies = _read.setdefault(tokenizer, {})
        if self._strings not in vocabularies:
            vocabularies[self._strings] = _vocabulary(self._strings, tokenizer)
        self._vocabulary = vocabularies[self._strings]

    def could_finish(self, vocabulary: int) -> Tensor:
        """Whether a token could complete a stop string, [V] bool on the CPU, for so many ids of a model."""
        finishing = self._vocabulary.finishing
        return torch.nn.functional.pad(finishing, (0, max(0, vocabulary - len(finishing))))[:vocabulary]

    def ends(self, answer: Sequence[int]) -> bool:
        """Whether the last token of an answer completed a stop string, if none was complete before it."""
        start = max(0, len(answer) - self._width)
        while start > 0 and answer[start] in self._vocabulary.partial:  # bytes are decoded together, or not at all
            start -= 1
        text = decode_tokens(self._tokenizer, answer[start:])
        return any(string in text for string in self._strings)


class Ending:
    """What ends the answers of a batch: tokens, and texts that tokens make together.

    Args:
        tokens: that end an answer.
        strings: that end one.
        opening: tokens of each prompt that its answers begin with.
        num_samples: answers a prompt.
    """

    def __init__(
        self, tokens: Sequence[int], strings: StopStrings | None, opening: Sequence[list[int]], num_samples: int
    ) -> None:
        self._tokens = torch.tensor(list(tokens))
        self._strings, self._opening, self._num_samples = strings, opening, num_samples
        self._could: Tensor | None = None

    def __call__(self, token: Tensor, row: Tensor, answers: Tensor, vocabulary: int) -> Tensor:
        """Whether each answer has ended, [n] bool.

        Args:
            token: [n], the tokens just sampled.
            row: [n], whose they are.
            answers: [B, T] all answers so far, those tokens included.
            vocabulary: ids of the model.
        """
        self._tokens = self._tokens.to(token.device)
        ended = torch.isin(token, self._tokens)
        if self._strings is None:
            return ended
        if self._could is None:
            self._could = self._strings.could_finish(vocabulary).to(token.device)
        candidates = (self._could[token] & ~ended).nonzero().squeeze(1)
        rows = row[candidates].tolist()
        for index, number, answer in zip(candidates.tolist(), rows, answers[row[candidates]].tolist(), strict=True):
            ended[index] = self._strings.ends(self._opening[number // self._num_samples] + answer)
        return ended


def _vocabulary(strings: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> _Vocabulary:
    """Which tokens have the end of a stop string in their text, and which are no text by themselves."""
    # Behind another token, for some tokenizers leave out the space that a text begins with.
    before = tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"]
    start = decode_tokens(tokenizer, before)
    texts = [decode_tokens(tokenizer, [*before, token]) for token in range(len(tokenizer))]
    beyond_ascii = not all(string.isascii() for string in strings)

    def could(text: str) -> bool:
        if not text.startswith(start) or (beyond_ascii and _PARTIAL in text):
            return True
        added = text[len(start) :]
        return any(
            string in added or any(string.endswith(added[:end]) for end in range(1, len(added) + 1))
            for string in strings
        )

    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    partial = (
        index
        for index, (text, name) in enumerate(zip(texts, names, strict=True))
        if _PARTIAL in str(text) or _BYTE.fullmatch(str(name))
    )
    return _Vocabulary(torch.tensor([could(str(text)) for text in texts]), frozenset(partial))
