"""Every page is in the navigation of the site and in the index, and every public name in the reference."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dpr_lightning
from tests.pages.blocks import PAGES, ROOT

DOCS = ROOT / "docs"
SITE = yaml.safe_load((DOCS / "mkdocs.yml").read_text(encoding="utf-8"))


def leaves(entry: Any) -> list[str]:
    """The paths of a part of the navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [path for part in parts for path in leaves(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    expected = [*(str(page.relative_to(ROOT)) for page in PAGES), "CHANGELOG.md"]
    assert sorted(leaves(SITE["nav"])) == sorted(expected)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index) if "://" not in target}
    assert {page for page in PAGES if page.name != "README.md"} <= linked


def test_every_public_name_is_in_the_reference() -> None:
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [name for name in dpr_lightning.__all__ if not re.search(rf"[. ]{name}\b", reference)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_and_tables_begin_after_an_empty_line(page: Path) -> None:
    """Python-Markdown takes them for text otherwise, while GitHub does not."""
    previous, code, wrong = "", False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        code ^= line.startswith("```")
        starts = re.match(r"([-*]|\d+\.|\|) ", line) is not None
        inside = re.match(r"([-*]|\d+\.|\|| {2,})", previous) is not None
        if not code and starts and previous.strip() and not inside:
            wrong.append(number)
        previous = line
    assert not wrong
