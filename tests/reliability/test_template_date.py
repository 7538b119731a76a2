"""A chat template that writes the date writes the same one when a run goes on later."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dpr_lightning.cli.main import main, run
from dpr_lightning.data.template_clock import dated_text, set_template_time
from tests.workspace import make_workspace, write_resumable_config, write_rows

LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% for m in messages %}{% if loop.first %}Today is {{ date_string }}: {% endif %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
BEGUN, LATER = datetime(2026, 3, 9, 12), datetime(2026, 3, 31, 12)


def test_a_run_goes_on_with_the_date_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    today = [BEGUN]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return today[0]

    monkeypatch.setattr("dpr_lightning.data.template_clock.datetime", Clock)
    workspace = make_workspace(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{n} ="}, {"role": "assistant", "content": str(n)}]}
        for n in range(8)
    ]
    (tmp_path / "template.jinja").write_text(LLAMA)
    rows_file = write_rows(tmp_path / "rows.jsonl", rows)
    config = write_resumable_config(tmp_path, workspace, rows_file, chat_template=str(tmp_path / "template.jinja"))

    def tokens(*options: str) -> torch.Tensor:
        data = run(["fit", "--config", config, *options]).datamodule.train_data
        return torch.as_tensor(data.arrays["tokens"])

    first = tokens("--trainer.max_steps", "2")
    assert "this run uses 09 Mar 2026 whenever it goes on" in caplog.text
    today[0] = LATER
    assert torch.equal(tokens("--trainer.max_steps", "4"), first)
    assert not torch.equal(tokens("--ckpt_path", "none"), first)
    manifest = json.loads((tmp_path / "checkpoints" / "step_0000002" / "manifest.json").read_text())
    assert manifest["template_time"] == LATER.isoformat()
    # The remedy of the warning: one date for all runs, and no warning.
    caplog.clear()
    fixed = ["--ckpt_path", "none", "--data.chat_template_kwargs", "{date_string: 09 Mar 2026}"]
    assert main(["fit", "--config", config, *fixed]) == 0
    assert "whenever it goes on" not in caplog.text
    set_template_time(None)


def test_a_date_that_changes_nothing_is_none(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_workspace(tmp_path).sft)
    assert "09 Mar 2026" in str(dated_text(tokenizer, LLAMA, BEGUN))
    assert dated_text(tokenizer, "{% set date_string = 'x' %}" + LLAMA, BEGUN) is None
    assert dated_text(tokenizer, "{{ messages[0].content }}", BEGUN) is None
