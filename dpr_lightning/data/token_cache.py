"""Cache of tokenised data sets on disk, under a key of everything that determines the tokens."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpr_lightning.data.chat_format import Format
from dpr_lightning.data.over_length import TokenizationReport
from dpr_lightning.data.rows import file_hash
from dpr_lightning.data.template_clock import dated_text, template_time
from dpr_lightning.data.tokenization import TOKENIZATION_VERSION
from dpr_lightning.data.tokenized import TokenizedDataset
from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_folder
from dpr_lightning.locking import only_one

log = logging.getLogger(__name__)
TOKENS, MANIFEST = "tokens.safetensors", "manifest.json"
TYPES = {
    "tokens": torch.int32,
    "mask": torch.bool,
    "offsets": torch.int64,
    "terminated": torch.bool,
    "number": torch.int64,
    "prompt_hash": torch.int64,
}
OPTIONAL = {"weights": torch.float32}
"""Arrays that a data set may lack."""


def cache_key(rows: str, tokenizer: PreTrainedTokenizerBase, form: Format, options: Mapping[str, Any]) -> str:
    """Hash of all that determines the tokens.

    Args:
        rows: fingerprint of the rows.
        tokenizer: its content is hashed, not its name.
        form: chat template and stop tokens.
        options: of reading and limiting the rows.
    """
    parts = {
        "version": TOKENIZATION_VERSION,
        "libraries": [transformers.__version__, tokenizers.__version__],
        "rows": rows,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": form.chat_template,
        "stops": sorted(form.stops),
        "special_text": form.special_text,
        "options": dict(options),
    }
    if (
        form.chat_template is not None
        and (text := dated_text(tokenizer, form.chat_template, template_time())) is not None
    ):
        parts["dated_text"] = text
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's content: vocabulary, merges, normalisation, special tokens."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # Padding and truncation are left from the tokenizer's last call, and are not used here.
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    text = json.dumps([content, special], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def load_or_tokenize(
    folder: Path, key: str, file: str, tokenize: Callable[[], TokenizedDataset], files: Sequence[str] = ()
) -> TokenizedDataset:
    """The data set saved under ``key`` in ``folder``; where there is none, tokenise and save it.

    A damaged entry is replaced. If two runs need the same entry at once, the second waits for the first and loads its
    result. The arrays are memory-mapped: a data set larger than memory can be read.

    Args:
        folder: of all caches.
        key: from :func:`cache_key`.
        file: name of the rows' file, for messages.
        tokenize: called where the cache has no such data set.
        files: names of the rows' files, where there are several.

    Raises:
        InputError: the cache cannot be written (a full disk, no permission); nothing half-written is left.
    """
    entry = folder.expanduser() / key[:32]
    cached = _load(entry, key, file, files)
    if cached is not None:
        return cached
    with only_one(entry) as waited:
        cached_meanwhile = _load(entry, key, file, files) if waited else None
        return cached_meanwhile or _make(entry, key, file, tokenize, files)


def _make(
    entry: Path, key: str, file: str, tokenize: Callable[[], TokenizedDataset], files: Sequence[str]
) -> TokenizedDataset:
    dataset = tokenize()
    try:
        with whole_folder(entry) as unfinished:
            _write(unfinished, key, dataset)
    except InputError as error:
        # Another process may have written the same entry in the meantime.
        cached = _load(entry, key, file, files)
        if cached is None:
            raise InputError(f"{error} (`cache_dir` moves the cache; `cache_dir: null` goes without.)") from error
        return cached
    return _load(entry, key, file, files) or dataset


def _write(folder: Path, key: str, dataset: TokenizedDataset) -> None:
    try:
        save_file(dataset.arrays, folder / TOKENS)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    manifest = {
        "key": key,
        "sha256": file_hash(folder / TOKENS),
        "report": json.loads(dataset.report.to_json()),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _load(entry: Path, key: str, file: str, files: Sequence[str]) -> TokenizedDataset | None:
    if not entry.is_dir():
        return None
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        if manifest["key"] != key or manifest["sha256"] != file_hash(entry / TOKENS):
            raise ValueError("its checksum does not match")
        arrays = load_file(entry / TOKENS)
        _check(arrays)
        report = TokenizationReport(**manifest["report"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        log.warning("The cached tokens in %s are damaged (%s); tokenising again.", entry, error)
        return None
    report.source = file
    return TokenizedDataset(arrays, file, report, files=files)


def _check(arrays: Mapping[str, Tensor]) -> None:
    """Check that the arrays have the names, types and shapes of :class:`TokenizedDataset`."""
    present = {name: kind for name, kind in OPTIONAL.items() if name in arrays}
    for name, kind in (TYPES | present).items():
        if arrays[name].dtype != kind or arrays[name].ndim != 1:
            raise ValueError(f"{name} is {arrays[name].dtype} with {arrays[name].ndim} axes")
    examples, end = len(arrays["offsets"]) - 1, int(arrays["offsets"][-1])
    if any(len(arrays[name]) != examples for name in ("terminated", "number", "prompt_hash")):
        raise ValueError("its arrays differ in length")
    if any(len(arrays[name]) != end for name in ("tokens", "mask", *present)):
        raise ValueError("its offsets do not fit its tokens")
