"""The Python of the user's pages is run as it stands, block after block, on a tiny model and a small file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_tiny_policy
from tests.training import write_weaker_policy

DOCS = Path(__file__).parents[1] / "docs"
# What makes it cheap, or run on a CPU. Nothing else is changed, so a wrong name or option fails.
LESS = {
    "from_trl.md": {
        "max_steps=100": "max_steps=2, use_cpu=True, bf16=False, report_to=[]",
        "max_completion_length=128": "max_completion_length=8",
    },
    "python.md": {
        "max_epochs=3": "max_epochs=1",
        "max_steps=40": "max_steps=2",
        "max_new_tokens=128": "max_new_tokens=8",
    },
}

RESULTS = {"from_trl.md": "my-token-grpo/checkpoint-2", "python.md": "runs/mine/rl/policies/final/config.json"}


def blocks(page: str) -> list[str]:
    """The Python of a page, with less work."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for whole, part in LESS[page].items():
        assert whole in text
        text = text.replace(whole, part)
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", sorted(LESS))
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_tiny_policy(tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    for step, noise in ((125, 0.05), (500, 0.01)):
        write_weaker_policy(base, tmp_path / "my-sft" / f"checkpoint-{step}", noise=noise)
    rows = [{"prompt": f"{n} + {n} =", "completion": f"{2 * n}"} for n in range(32)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if page == "from_trl.md":
        pytest.importorskip("trl")
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    assert (tmp_path / RESULTS[page]).exists()


def test_sft_and_dpr_take_twenty_lines() -> None:
    lines = blocks("python.md")[0].splitlines()
    assert len([line for line in lines if line.strip()]) <= 20
