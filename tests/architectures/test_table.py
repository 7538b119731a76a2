"""Every cell of docs/architectures.md is tried again."""

from pathlib import Path

import pytest

from tests.architectures.abilities import abilities
from tests.architectures.page import page, read_rows
from tests.architectures.registry import TINY

SAMPLE = (
    "bert",
    "bart",
    "deepseek_v3",
    "gemma3_text",
    "gpt2",
    "lfm2",
    "llama",
    "mamba",
    "qwen3_next",
    "rwkv",
)
"""One of each way to attend, to remember and to be refused; the rest is tried by `make test-slow`."""
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.fixture(scope="module")
def documented() -> dict[str, dict[str, str]]:
    """The rows of the page."""
    return read_rows(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in SAMPLE else pytest.mark.slow) for kind in TINY]
)
def test_an_architecture_can_do_what_its_row_says(
    kind: str, documented: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    assert abilities(kind, tmp_path) == documented[kind], "run `python -m tests.architectures docs/architectures.md`"


def test_the_sample_is_in_the_registry() -> None:
    assert set(SAMPLE) <= set(TINY)


def test_the_page_is_what_the_command_writes(documented: dict[str, dict[str, str]]) -> None:
    assert list(documented) == list(TINY)
    assert page(documented) == PAGE.read_text(encoding="utf-8")
