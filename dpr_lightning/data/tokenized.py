"""A tokenised data set as a few flat arrays: a million demonstrations without a million Python objects."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import Format
from dpr_lightning.data.conversations import Example, to_demonstration
from dpr_lightning.data.learnt_parts import OnDropped
from dpr_lightning.data.learnt_text import UnknownTokens
from dpr_lightning.data.notices import Notices
from dpr_lightning.data.over_length import LengthLimit, OverLength, TokenizationReport
from dpr_lightning.data.prompt_identity import prompt_hash
from dpr_lightning.data.row_types import Row, RowSource, first_rows, locate, row_key
from dpr_lightning.data.tokenization import TokenizedExample, tokenize_examples
from dpr_lightning.errors import InputError
from dpr_lightning.progress import progress_bar
from dpr_lightning.types import DemonstrationBatch

CHUNK = 512
"""Rows tokenised at once."""


class TokenizedDataset:
    """Demonstrations as tokens, in the order of their file, or a selection of them.

    Args:
        arrays: ``tokens`` int32 and ``mask`` bool of all examples one after the other; ``offsets`` int64 [N + 1];
            ``terminated`` bool, ``number`` int64 (row in the file, from 1) and ``prompt_hash`` int64, each [N];
            optionally ``weights`` float32 of all examples' tokens, else each weighs 1.
        file: name of the rows' file, for messages.
        report: counts of rows and tokens.
        index: [N] indices of the selected examples; None: all.
        files: of the rows, where there are several; their index is in ``number``, see
            :func:`~dpr_lightning.data.row_types.row_key`.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        file: str,
        report: TokenizationReport,
        index: NDArray[np.int64] | None = None,
        files: Sequence[str] = (),
    ) -> None:
        self.arrays = dict(arrays)
        self.file = file
        self.files = tuple(files) or (file,)
        self.report = report
        columns: dict[str, NDArray[Any]] = {name: value.numpy() for name, value in arrays.items()}
        self._tokens, self._mask, self._offsets = columns["tokens"], columns["mask"], columns["offsets"]
        self.index = np.arange(len(self._offsets) - 1, dtype=np.int64) if index is None else index
        self.starts: NDArray[np.int64] = self._offsets[self.index]
        self.lengths: NDArray[np.int64] = self._offsets[self.index + 1] - self.starts
        self.terminated: NDArray[np.bool_] = columns["terminated"][self.index]
        self.numbers: NDArray[np.int64] = columns["number"][self.index]
        self.prompt_hashes: NDArray[np.int64] = columns["prompt_hash"][self.index]
        acted = (
            np.add.reduceat(self._mask, self._offsets[:-1], dtype=np.int64) if len(self._mask) else self._offsets[:0]
        )
        self.acted_tokens: NDArray[np.int64] = acted[self.index]
        self._weights = columns.get("weights")

    def __len__(self) -> int:
        """Number of demonstrations."""
        return len(self.index)

    @property
    def loss_weights(self) -> NDArray[Any]:
        """[N] weight of each example's loss: the sum over its tokens to learn, or their number."""
        if self._weights is None:
            return self.acted_tokens
        summed = np.add.reduceat(np.where(self._mask, self._weights, 0.0), self._offsets[:-1], dtype=np.float64)
        return np.asarray(summed[self.index])

    def where(self, index: int) -> str:
        """``file:number`` of an example."""
        file, number = locate(self.files, int(self.numbers[index]))
        return f"{file}:{number}"

    def select(self, indices: NDArray[np.int64]) -> "TokenizedDataset":
        """Some of the examples; the tokens are shared, not copied."""
        return TokenizedDataset(self.arrays, self.file, self.report, self.index[indices], self.files)

    def example(self, index: int) -> TokenizedExample:
        """One example, as lists."""
        span = slice(int(self.starts[index]), int(self.starts[index] + self.lengths[index]))
        weights = None if self._weights is None else self._weights[span].tolist()
        return TokenizedExample(
            self._tokens[span].tolist(), self._mask[span].tolist(), bool(self.terminated[index]), weights
        )

    def batch(
        self, indices: NDArray[np.int64], num_tokens: float, pad: int, *, blank: bool = False
    ) -> DemonstrationBatch:
        """Some examples, padded on the right with ``pad`` to the longest of them.

        Args:
            indices: [B] in this data set.
            num_tokens: acted tokens of the whole optimizer step.
            pad: token id of the padding.
            blank: the mask is False throughout: the batch is for a rank that has no example left.

        Raises:
            InputError: an example has no prompt, so that its first token would have to be learnt.
        """
        lengths = self.lengths[indices]
        column = np.arange(int(lengths.max()), dtype=np.int64)
        present = column < lengths[:, None]
        source = np.where(present, self.starts[indices][:, None] + column, 0)
        mask = self._mask[source] & present & (not blank)
        if mask[:, 0].any():
            index = int(indices[int(mask[:, 0].argmax())])
            raise InputError(
                f"{self.where(index)}: the prompt has no tokens; nothing conditions the first one to learn."
            )
        return DemonstrationBatch(
            tokens=torch.from_numpy(np.where(present, self._tokens[source], pad).astype(np.int64)),
            mask=torch.from_numpy(mask),
            terminated=torch.from_numpy(self.terminated[indices] & (not blank)),
            num_tokens=torch.tensor(num_tokens, dtype=torch.float32),
            row=torch.from_numpy(indices.astype(np.int64)),
            weights=None if self._weights is None else torch.from_numpy(self._weights[source]),
        )


def tokenize_rows(
    source: RowSource,
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
    *,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    over_length: OverLength = "error",
    on_dropped: OnDropped = "error",
    limit: int | None = None,
    progress: bool = False,
    weighted: bool = True,
) -> TokenizedDataset:
    """Tokenise the demonstrations of a file.

    Args:
        source: the rows.
        tokenizer: of the policy.
        form: chat template and stop tokens.
        columns: the file's names of our columns.
        max_length: tokens of the longest example allowed; None: no limit.
        over_length: ``error``, ``drop`` or ``truncate``, for longer ones.
        on_dropped: ``error`` or ``warn``, where the chat template leaves out a part of a turn to learn.
        limit: read only so many rows.
        progress: show a bar.
        weighted: False: ``loss_spans`` are ignored, for scoring every token.

    Raises:
        InputError: names the row and the reason.
    """
    if on_dropped not in get_args(OnDropped):
        raise InputError(f"`on_dropped` is one of {', '.join(get_args(OnDropped))}; found {on_dropped!r}.")
    bound, notices = LengthLimit(max_length, over_length, source.name), Notices()
    unknown = UnknownTokens(tokenizer, form)
    tokens: list[NDArray[np.int32]] = []
    mask: list[NDArray[np.bool_]] = []
    weights: list[NDArray[np.float32]] = []
    lengths: list[int] = []
    terminated: list[bool] = []
    numbers: list[int] = []
    hashes: list[int] = []
    files = {file: index for index, file in enumerate(source.files)}
    rows = first_rows(source, limit)
    with progress_bar(f"Tokenising {source.name}", source.count() if limit is None else limit, progress) as advance:
        while examples := [_read(row, columns, weighted) for row in islice(rows, CHUNK)]:
            chunk = []
            rows_of_chunk = tokenize_examples(examples, tokenizer, form, notices, on_dropped)
            for example, tokenized in zip(examples, rows_of_chunk, strict=True):
                notices.add_shape(example.shape, example.unused, example.location)
                notices.add_columns(example.rest)
                result = bound.apply(tokenized, example.location, form.stop_ids)
                if result is not None:
                    unknown.add(
                        example, (token for token, acted in zip(result.tokens, result.mask, strict=True) if acted)
                    )
                    chunk.append(result)
                    lengths.append(len(result.tokens))
                    terminated.append(result.terminated)
                    numbers.append(row_key(files[example.file], example.number))
                    hashes.append(prompt_hash(example.prompt_text))
            tokens.append(np.fromiter((token for result in chunk for token in result.tokens), dtype=np.int32))
            mask.append(np.fromiter((acted for result in chunk for acted in result.mask), dtype=np.bool_))
            weights.append(_weights_of(chunk))
            advance(len(examples))
    report = bound.finish()
    report.unknown_tokens, report.unknown = unknown.count, unknown.sentence(report.acted_tokens)
    report.notes = [*source.notes, *notices.lines(), *([report.unknown] if report.unknown else [])]
    arrays = {
        "tokens": torch.from_numpy(np.concatenate(tokens)),
        "mask": torch.from_numpy(np.concatenate(mask)),
        "offsets": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        "terminated": torch.tensor(terminated, dtype=torch.bool),
        "number": torch.tensor(numbers, dtype=torch.int64),
        "prompt_hash": torch.tensor(hashes, dtype=torch.int64),
    }
    if any((part != 1).any() for part in weights):
        arrays["weights"] = torch.from_numpy(np.concatenate(weights))
    return TokenizedDataset(arrays, source.name, report, files=source.files)


def _read(row: Row, columns: Mapping[str, str] | None, weighted: bool) -> Example:
    example = to_demonstration(row, columns)
    return example if weighted else replace(example, loss_spans=())


def _weights_of(chunk: Sequence[TokenizedExample]) -> NDArray[np.float32]:
    """Of all tokens of some rows, one after the other."""
    lengths = [len(example.tokens) for example in chunk]
    weights = np.ones(sum(lengths), dtype=np.float32)
    for example, end in zip(chunk, np.cumsum(lengths), strict=True):
        if example.weights is not None:
            weights[end - len(example.tokens) : end] = example.weights
    return weights
