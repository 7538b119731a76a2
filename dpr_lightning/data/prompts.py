"""Prompts alone, for reinforcement learning and evaluation."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import SpecialText, choose_format
from dpr_lightning.data.conversations import to_prompt
from dpr_lightning.data.notices import Notices, log_lines
from dpr_lightning.data.over_length import over_length_message
from dpr_lightning.data.prompt_identity import prompt_hash
from dpr_lightning.data.rendering import demonstrated_metadata
from dpr_lightning.data.row_types import RowSource, first_rows, locate, row_key
from dpr_lightning.data.rows import Rows, open_rows
from dpr_lightning.data.tokenization import tokenize_prompts
from dpr_lightning.data.tokenized import CHUNK
from dpr_lightning.engine import check_positions
from dpr_lightning.errors import InputError, counted
from dpr_lightning.progress import progress_bar


def check_prompt_positions(model: nn.Module, prompts: "PromptSet", new_tokens: int, option: str) -> None:
    """Check that the longest prompt and its answer fit the positions of ``model``; see :func:`check_positions`.

    Args:
        model: that samples the answers.
        prompts: the prompts to answer.
        new_tokens: tokens of the longest answer.
        option: that sets ``new_tokens``, for the error message.

    Raises:
        InputError: the model has fewer positions.
    """
    if not len(prompts):
        return
    index = max(range(len(prompts)), key=lambda each: len(prompts.tokens[each]))
    longest = len(prompts.tokens[index])

    def remedy(limit: int) -> str:
        if longest >= limit:
            return f"Leave out prompts of more than {limit - 1:,} tokens, or choose a model with more positions."
        return f"Set `{option}` to at most {limit - longest:,}, or leave out long prompts."

    what = f"{prompts.where(index)}: its prompt has {longest:,} tokens and `{option}` is {new_tokens:,}"
    check_positions(model, longest + new_tokens, what, remedy)


class PromptSet:
    """Prompts as tokens, with their text and the columns that verifiers read.

    Args:
        tokens: token ids of each prompt.
        texts: the prompts as text.
        metadata: the row's other columns.
        numbers: row in the file, from 1.
        file: name of the rows' file, for messages.
        dropped: rows left out because they are too long.
        files: of the rows, where there are several; their index is in ``numbers``, see
            :func:`~dpr_lightning.data.row_types.row_key`.
    """

    def __init__(
        self,
        tokens: Sequence[list[int]],
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        numbers: Sequence[int],
        file: str,
        dropped: int = 0,
        files: Sequence[str] = (),
    ) -> None:
        self.tokens = list(tokens)
        self.texts = list(texts)
        self.metadata = list(metadata)
        self.numbers = list(numbers)
        self.file = file
        self.files = tuple(files) or (file,)
        self.dropped = dropped
        self.prompt_hashes: NDArray[np.int64] = np.array([prompt_hash(text) for text in self.texts], dtype=np.int64)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.tokens)

    def __str__(self) -> str:
        """One line."""
        longest = max(map(len, self.tokens), default=0)
        prompts = counted(len(self), "prompt")
        return f"{self.file}: {prompts}, longest {longest:,} tokens, {self.dropped:,} dropped as too long"

    def where(self, index: int) -> str:
        """``file:number`` of a prompt."""
        file, number = locate(self.files, self.numbers[index])
        return f"{file}:{number}"

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "PromptSet":
        """Some of the prompts."""
        selected = [int(index) for index in indices]
        return PromptSet(
            [self.tokens[index] for index in selected],
            [self.texts[index] for index in selected],
            [self.metadata[index] for index in selected],
            [self.numbers[index] for index in selected],
            self.file,
            files=self.files,
        )

    def without(self, exclude: Rows, columns: Mapping[str, str] | None) -> "PromptSet":
        """The prompts that other rows do not have; one line says how many that leaves out.

        Args:
            exclude: the other rows; see :func:`~dpr_lightning.data.rows.open_rows`. They are not tokenised.
            columns: their names of our columns.

        Raises:
            InputError: they have all of the prompts, or one of them is malformed.
        """
        hashes = (prompt_hash(to_prompt(row, columns).prompt_text) for row in open_rows(exclude))
        is_excluded = np.isin(self.prompt_hashes, np.fromiter(hashes, dtype=np.int64))
        count = int(is_excluded.sum())
        if count == len(self):
            raise InputError(
                f"`data.exclude` ({exclude}) has all prompts of {self.file}: nothing is left to learn from. Name the "
                "rows that were held out of it."
            )
        number = f"{count:,} of its {counted(len(self), 'prompt')}" if count else "none of its prompts"
        log_lines(self.file, [f"`data.exclude` ({exclude}) leaves out {number}."])
        return self.select(np.flatnonzero(~is_excluded))

    @classmethod
    def load(
        cls,
        source: Rows | RowSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        columns: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        special_tokens_in_text: SpecialText | None = None,
        max_prompt_length: int | None = None,
        over_length: str = "error",
        limit: int | None = None,
        progress: bool = False,
    ) -> "PromptSet":
        """Read prompts from rows with ``prompt``, or with ``messages`` without the assistant's closing turns.

        Args:
            source: files or a data set; see :func:`~dpr_lightning.data.rows.open_rows`.
            tokenizer: of the policy.
            columns: the file's names of our columns.
            chat_template: instead of the tokenizer's own; ``none``: plain text.
            chat_template_kwargs: variables of the template; those of a row take precedence.
            special_tokens_in_text: ``text``, ``tokens`` or ``error``; None: as saved with the tokenizer, else ``text``.
            max_prompt_length: tokens of the longest prompt allowed; None: no limit.
            over_length: ``error`` refuses the file, ``drop`` leaves longer prompts out.
            limit: read only so many rows.
            progress: show a bar.

        Raises:
            InputError: names the row and the reason.
        """
        if over_length not in ("error", "drop"):
            raise InputError(
                f"`over_length` of prompts is `error` or `drop`; found {over_length!r}. A prompt that is cut asks "
                "something else."
            )
        form = choose_format(
            tokenizer,
            chat_template,
            chat_template_kwargs=chat_template_kwargs,
            special_tokens_in_text=special_tokens_in_text,
        )
        rows_source = open_rows(source)
        files = {file: index for index, file in enumerate(rows_source.files)}
        rows = first_rows(rows_source, limit)
        tokens: list[list[int]] = []
        texts: list[str] = []
        metadata: list[Mapping[str, Any]] = []
        numbers: list[int] = []
        too_long: list[tuple[str, int]] = []
        notices = Notices()
        total = rows_source.count() if limit is None else limit
        with progress_bar(f"Reading prompts of {rows_source.name}", total, progress) as advance:
            while examples := [to_prompt(row, columns) for row in islice(rows, CHUNK)]:
                for example, ids in zip(examples, tokenize_prompts(examples, tokenizer, form, notices), strict=True):
                    notices.add_shape(example.shape, example.unused, example.location)
                    if max_prompt_length is not None and len(ids) > max_prompt_length:
                        too_long.append((example.location, len(ids)))
                        continue
                    tokens.append(ids)
                    texts.append(example.prompt_text)
                    metadata.append(demonstrated_metadata(example, tokenizer, form))
                    numbers.append(row_key(files[example.file], example.number))
                advance(len(examples))
        if too_long and (over_length == "error" or not tokens):
            rows_read = len(tokens) + len(too_long)
            raise InputError(over_length_message(too_long, rows_read, "max_prompt_length", max_prompt_length or 0))
        log_lines(rows_source.name, [*rows_source.notes, *notices.lines()])
        return cls(tokens, texts, metadata, numbers, rows_source.name, len(too_long), rows_source.files)
