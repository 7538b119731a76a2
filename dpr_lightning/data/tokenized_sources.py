"""What a DataModule does with each source of demonstrations: tokenise it once, check its lengths, log its size."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import Format
from dpr_lightning.data.row_types import RowSource
from dpr_lightning.data.token_cache import cache_key, load_or_tokenize
from dpr_lightning.data.tokenized import TokenizedDataset, tokenize_rows
from dpr_lightning.engine import check_positions
from dpr_lightning.errors import InputError
from dpr_lightning.policies import PolicySpec, load_tokenizer


def tokenizer_of_data(source: str | None, spec: PolicySpec | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the data name, or else that of the policy in training.

    Args:
        source: hub id or folder; None: that of the policy.
        spec: of the policy; None where there is none yet.

    Raises:
        InputError: neither names one, or it cannot be loaded.
    """
    options: dict[str, Any] = {"for_training": True}
    if spec is not None:
        options["pad_token"] = spec.pad_token
    if source is None:
        if spec is None:
            raise InputError("No tokenizer: set `tokenizer` to a hub id or a folder.")
        source = spec.tokenizer_source
        if spec.tokenizer is None:
            options["gguf_file"] = spec.gguf_file
        options["trust_remote_code"] = spec.trust_remote_code
    return load_tokenizer(source, **options)


def tokenize_or_load(
    rows: RowSource,
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
    cache_dir: str | None,
    *,
    progress: bool,
    **options: Any,
) -> TokenizedDataset:
    """The demonstrations of a source as tokens, from the cache where the same rows were tokenised alike before.

    Args:
        rows: of the source.
        tokenizer: of the policy.
        form: chat template and stop tokens.
        cache_dir: folder of the cache; None: tokenise without one.
        progress: show a bar.
        options: of :func:`~dpr_lightning.data.tokenized.tokenize_rows`; they are part of the cache's key.

    Raises:
        InputError: names the row and the reason.
    """

    def tokenize() -> TokenizedDataset:
        return tokenize_rows(rows, tokenizer, form, progress=progress, **options)

    if cache_dir is None:
        return tokenize()
    key = cache_key(rows.fingerprint(), tokenizer, form, options)
    return load_or_tokenize(Path(cache_dir), key, rows.name, tokenize, rows.files)


def check_longest(policy: nn.Module, datasets: Iterable[TokenizedDataset | None]) -> None:
    """Refuse demonstrations that are longer than the policy has positions.

    Raises:
        InputError: names the longest row, its tokens and the positions.
    """
    for dataset in datasets:
        if dataset is None or not len(dataset):
            continue
        longest = int(dataset.lengths.argmax())
        tokens = int(dataset.lengths[longest])
        check_positions(policy, tokens, f"{dataset.where(longest)} has {tokens:,} tokens", _shorter_rows)


def _shorter_rows(limit: int) -> str:
    return (
        f"Set `data.max_length: {limit}` with `data.over_length: drop` or `truncate`, or choose a model with more "
        "positions."
    )


def log_counts(trainer: Trainer, datasets: Mapping[str, TokenizedDataset | None]) -> None:
    """Log the sizes of the training and validation sets as ``data/NAME/…``, once, before the first step."""
    counts = {
        f"data/{name}/{key}": value
        for name, dataset in datasets.items()
        if dataset is not None
        for key, value in {**dataset.report.counts(), "examples": float(len(dataset))}.items()
    }
    for logger in trainer.loggers:
        logger.log_metrics(counts, step=trainer.global_step)
