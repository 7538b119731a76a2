"""docs/verifiers.md: what each verifier says to the answers of the page, and that none is missing."""

import json
import re

import pytest

from dpr_lightning.evaluation.verifiers import VERIFIERS
from tests.pages.blocks import ROOT

PAGE = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))
NEEDS = {"instructions": "lm_eval", "reasoning_gym": "reasoning_gym"}


def test_the_page_has_every_verifier() -> None:
    assert set(SECTIONS) == set(VERIFIERS)
    assert set(re.findall(r"^\| \[`(\w+)`\]\(#\w+\)", PAGE, re.MULTILINE)) == set(VERIFIERS)


@pytest.mark.parametrize("name", SECTIONS)
def test_scores_of_a_verifier(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    row = json.loads(re.findall(r"```json\n(.*?)```", SECTIONS[name], re.DOTALL)[0])
    scores = re.findall(r"^\| `(.+)` \| ([01]) \|$", SECTIONS[name], re.MULTILINE)
    assert {score for _, score in scores} == {"0", "1"}
    for completion, score in scores:
        assert VERIFIERS[name](row["prompt"], completion, row) == float(score), completion
