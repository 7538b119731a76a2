"""Tokenizers made on the spot: byte-pair merges that cross words, and a chat template of our own."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<|end|>", "<|start|>", "<bos>", "<|stop|>"]
TEXTS = ["What is 3+4? It is 7. ", "hello there, hello world ", "Answer: 12 and Answer: 7 "] * 20


def make_tokenizer(template: str | None = TEMPLATE, across_spaces: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with ``across_spaces`` its merges know no word boundary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_spaces)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<|end|>",
        bos_token="<bos>",
        additional_special_tokens=["<|start|>", "<|stop|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """With a chat template."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Without one."""
    return make_tokenizer(template=None)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON Lines and gives the path."""

    def write(rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
