"""Tokenised data on disk: found again, made again when damaged, never half-written."""

import errno
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import token_cache
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.rows import open_rows
from dpr_lightning.data.token_cache import cache_key, load_or_tokenize, tokenizer_fingerprint
from dpr_lightning.data.tokenized import TokenizedDataset, tokenize_rows
from dpr_lightning.errors import InputError
from tests.data.conftest import TEMPLATE, make_tokenizer

ROWS = [{"prompt": f"What is {number}?", "completion": f"It is {number * number}."} for number in range(20)]


class Counting:
    """Tokenises, and counts how often it is asked to."""

    def __init__(self, file: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.file, self.tokenizer, self.calls = file, tokenizer, 0

    def __call__(self) -> TokenizedDataset:
        self.calls += 1
        return tokenize_rows(open_rows(self.file), self.tokenizer, choose_format(self.tokenizer))


@pytest.fixture
def tokenize(write_rows: Callable[..., str], chat_tokenizer: PreTrainedTokenizerFast) -> Counting:
    return Counting(write_rows(ROWS), chat_tokenizer)


def same(first: TokenizedDataset, second: TokenizedDataset) -> bool:
    return str(first.report) == str(second.report) and all(
        torch.equal(first.arrays[name], second.arrays[name]) for name in first.arrays
    )


def test_the_second_time_nothing_is_tokenised(tmp_path: Path, tokenize: Counting) -> None:
    first = load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    second = load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    assert tokenize.calls == 1
    assert same(first, second)
    assert same(first, tokenize())
    assert second.where(3) == f"{tokenize.file}:4"
    assert second.report.rows == 20


def test_of_two_runs_one_tokenises_and_the_other_waits(tmp_path: Path, tokenize: Counting) -> None:
    """Before, both did the work, and the second threw it away."""
    started, may_end = threading.Event(), threading.Event()

    def slowly() -> TokenizedDataset:
        started.set()
        assert may_end.wait(30)
        return tokenize()

    with ThreadPoolExecutor(2) as runs:
        first = runs.submit(load_or_tokenize, tmp_path / "cache", "k" * 64, tokenize.file, slowly)
        assert started.wait(30)
        second = runs.submit(load_or_tokenize, tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
        with pytest.raises(TimeoutError):
            second.result(0.5)
        may_end.set()
        assert same(first.result(30), second.result(30))
    assert tokenize.calls == 1


def _corrupt(entry: Path) -> None:
    content = bytearray((entry / token_cache.TOKENS).read_bytes())
    content[-3] ^= 1
    (entry / token_cache.TOKENS).write_bytes(content)


def _cut(entry: Path) -> None:
    content = (entry / token_cache.TOKENS).read_bytes()
    (entry / token_cache.TOKENS).write_bytes(content[: len(content) // 2])


DAMAGES: list[Callable[[Path], Any]] = [
    _corrupt,
    _cut,
    lambda entry: (entry / token_cache.TOKENS).unlink(),
    lambda entry: (entry / token_cache.MANIFEST).unlink(),
    lambda entry: (entry / token_cache.MANIFEST).write_text("{"),
    lambda entry: (entry / token_cache.MANIFEST).write_text("[]"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, tokenize: Counting, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    before = {name: value.clone() for name, value in first.arrays.items()}
    damage(tmp_path / "cache" / ("k" * 32))
    with caplog.at_level(logging.WARNING):
        second = load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    assert tokenize.calls == 2
    assert all(torch.equal(before[name], second.arrays[name]) for name in before)
    assert "damaged" in caplog.text
    load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    assert tokenize.calls == 2


def test_arrays_that_do_not_fit_together_are_damage(tmp_path: Path, tokenize: Counting) -> None:
    load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    entry = tmp_path / "cache" / ("k" * 32)
    dataset = tokenize()
    dataset.arrays["mask"] = dataset.arrays["mask"][:-1].clone()
    token_cache._write(entry, "k" * 64, dataset)
    again = load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    assert len(again.arrays["mask"]) == len(again.arrays["tokens"])


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, tokenize: Counting, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def full(arrays: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise fault

    monkeypatch.setattr(token_cache, "save_file", full)
    with pytest.raises(InputError, match=r"No space left on device.*cache_dir"):
        load_or_tokenize(tmp_path / "cache", "k" * 64, tokenize.file, tokenize)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_entry_written_meanwhile_by_another_process_is_used(
    tmp_path: Path, tokenize: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    tokenized = tokenize()

    def meanwhile() -> TokenizedDataset:
        (folder / ("k" * 32)).mkdir(parents=True)
        token_cache._write(folder / ("k" * 32), "k" * 64, tokenized)
        monkeypatch.setattr(token_cache, "save_file", lambda *_: (_ for _ in ()).throw(OSError("taken")))
        return tokenized

    assert same(load_or_tokenize(folder, "k" * 64, tokenize.file, meanwhile), tokenized)


def test_the_key_follows_everything_that_determines_the_tokens(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    form = choose_format(chat_tokenizer)
    options = {"max_length": 10, "columns": None}
    base = cache_key("rows", chat_tokenizer, form, options)
    assert base == cache_key("rows", make_tokenizer(), choose_format(make_tokenizer()), dict(options))
    changed = {
        cache_key("other", chat_tokenizer, form, options),
        cache_key("rows", make_tokenizer(across_spaces=True), form, options),
        cache_key("rows", chat_tokenizer, choose_format(chat_tokenizer, TEMPLATE + " "), options),
        cache_key("rows", chat_tokenizer, choose_format(chat_tokenizer, "none"), options),
        cache_key("rows", chat_tokenizer, choose_format(chat_tokenizer, None, "<|stop|>"), options),
        cache_key("rows", chat_tokenizer, form, {**options, "max_length": 11}),
    }
    assert len(changed | {base}) == 7


def test_a_tokenizers_fingerprint_is_its_content(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    chat_tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    loaded("a", padding="max_length", max_length=7, truncation=True)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(chat_tokenizer)
    loaded.eos_token = "<|stop|>"
    assert tokenizer_fingerprint(loaded) != tokenizer_fingerprint(chat_tokenizer)


def test_the_manifest_says_what_it_is(tmp_path: Path, tokenize: Counting) -> None:
    load_or_tokenize(tmp_path, "k" * 64, tokenize.file, tokenize)
    manifest = json.loads((tmp_path / ("k" * 32) / token_cache.MANIFEST).read_text())
    assert manifest["key"] == "k" * 64
    assert manifest["report"]["rows"] == 20
