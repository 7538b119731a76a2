"""Each message on docs/troubleshooting.md is one that `dpr` prints."""

import html
import re

import pytest

from dpr_lightning.evaluation.preview_results import Preview
from dpr_lightning.evaluation.preview_words import nothing_to_rank
from dpr_lightning.evaluation.statistics import MeanInterval
from dpr_lightning.workflow import combine
from tests.pages.blocks import ROOT, blocks

MESSAGES = [
    block.code.strip()
    for block in blocks((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    if block.language == "text"
]


def printed() -> list[str]:
    """Messages that `dpr` prints: the table, of which another test makes every case, and the results of `dpr check`."""
    table = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| (.+) \|$", table, re.MULTILINE)
    preview = Preview(4, 2, MeanInterval(0.0, 0.0, 0.0, 0.0, 8), 9.0, False, 0.0, (), None, None, None)
    content = {"unranked": None, "score": {"mean": 0.5}, "best": None, "rewards": []}
    checks = [nothing_to_rank(preview) or "", *combine({"audits": []}, content, {}, "0.25").reasons]
    return [html.unescape(row).replace("\\", "") for row in rows] + checks


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:40])
def test_a_message_is_printed(message: str) -> None:
    parts = " ".join(message.split()).split("…")
    pattern = ".*".join(re.escape(part.strip()) for part in parts)
    assert any(re.match(pattern, candidate) for candidate in printed())


def test_there_are_enough() -> None:
    assert len(MESSAGES) >= 20
