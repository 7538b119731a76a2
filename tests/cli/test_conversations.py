"""Commands on policies that were taught conversations with a stop token of their own, and on rows of several turns."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from dpr_lightning.cli.main import main
from tests.workspace import Workspace, write_rows

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Q' + message['content'] + 'A' }}"
    "{% else %}{{ message['content'] + '!' }}{% endif %}{% endfor %}"
)


def turns(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]}


@pytest.fixture
def talking(workspace: Workspace, tmp_path: Path) -> tuple[str, str]:
    """π_SFT and a reference whose template closes the assistant's turn with `!` instead of EOS."""
    folders = []
    for name, source in (("sft", workspace.sft), ("reference", workspace.reference)):
        folder = tmp_path / name
        shutil.copytree(source, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("!")]
        GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
        folders.append(str(folder))
    return folders[0], folders[1]


def test_the_stop_token_that_a_policy_carries_is_known_everywhere(
    talking: tuple[str, str], dpr_config: Callable[..., str], tmp_path: Path
) -> None:
    sft, reference = talking
    rows = [turns(f"{n}+1=", str(n + 1)) for n in range(8)]
    file = write_rows(tmp_path / "talk.jsonl", rows)
    models = ["--sft", sft, "--references", f"[{reference}]"]
    assert main(["audit", *models, "--demonstrations", file, "--max_new_tokens", "4", "--samples", "2"]) in (0, 3)
    assert main(["rewards", *models, "--responses", file, "--output", str(tmp_path / "rewards")]) == 0
    held_out = write_rows(tmp_path / "held.jsonl", [turns(f"{n}-1=", str(n - 1)) for n in range(10, 14)])
    config = dpr_config(policy=sft, sft=sft, references=[reference], prompts=file, held_out=held_out)
    callback = "--trainer.callbacks+=dpr_lightning.callbacks.HeldOutReward"
    assert main(["fit", "--config", config, callback]) == 0


def test_an_audit_compares_samples_with_the_turn_that_they_answer(talking: tuple[str, str], tmp_path: Path) -> None:
    """What the assistant said in earlier turns is no part of it: the same last turns give the same comparison."""
    sft, reference = talking

    def audited(name: str, rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        output = tmp_path / f"{name}.json"
        models = ["--sft", sft, "--references", f"[{reference}]", "--output", str(output)]
        file = write_rows(tmp_path / f"{name}.jsonl", rows)
        assert main(["audit", *models, "--demonstrations", file, "--max_new_tokens", "6", "--samples", "4"]) in (0, 3)
        return {(audit["reference"], audit["form"]): audit for audit in json.loads(output.read_text())["audits"]}

    def conversation(learn: bool, n: int) -> dict[str, Any]:
        row = turns(f"{n}+1=", str(n + 1) * 6, f"{n}+2=", str(n + 2))
        row["messages"][1]["train"] = learn
        return row

    whole, last = (
        audited(name, [conversation(learn, n) for n in range(8)]) for name, learn in (("whole", True), ("last", False))
    )
    assert {key: audit["samples_auc"] for key, audit in whole.items()} == {
        key: audit["samples_auc"] for key, audit in last.items()
    }


def test_an_audit_refuses_a_row_that_goes_on(
    talking: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft, reference = talking
    file = write_rows(tmp_path / "on.jsonl", [turns("1+1=", "2"), turns("1+2=", "3", "9")])
    models = ["--sft", sft, "--references", f"[{reference}]"]
    assert main(["audit", *models, "--demonstrations", file, "--max_new_tokens", "4"]) == 2
    assert "on.jsonl:2 goes on after the last turn" in capsys.readouterr().err
