"""Commands of docs/start.md are run as they stand, in order, on smaller models and data; names in the README exist."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dpr_lightning.data.row_types import row_hash
from tests.pages.blocks import blocks
from tests.tiny import write_tiny_policy
from tests.workspace import write_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Added to a command to make it cheap. Nothing else is changed, so a wrong path or option in the README fails.
LESS = {
    "sft": "--epochs 2 --set run.wandb=off",
    "check": "--prompts 8 --samples 2 --max_new_tokens 8",
    "rl": "--steps 2 --set run.wandb=off",
    "chat": "--max_new_tokens 8",
    "toy": "--demonstrations 64 --prompts 64 --development 16 --test 16 --hidden_size 16 --layers 1",
    "fit": "--trainer.enable_progress_bar=false",
    "fit configs/toy/sft.yaml": "--data.init_args.batch_size=4",
    "fit configs/toy/dpr.yaml": "--trainer.max_steps=2",
    "fit configs/toy/self_play.yaml": "--trainer.max_steps=2",
    "fit configs/toy/verifier_head.yaml": "--trainer.max_steps=2 --trainer.limit_val_batches=1",
    "best_of": "--samples 2 --limit 8 --max_new_tokens 16",
    "preview": "--samples 2 --limit 8 --max_new_tokens 16",
    "audit": "--samples 2 --limit 8 --max_new_tokens 16",
    "generate": "--limit 4 --max_new_tokens 32",
    "evaluate": "--limit 8 --max_new_tokens 16",
}


# Exit codes that say whether a reward is worth training on, which on so small a toy it need not be.
ALLOWED = {"audit": (0, 3), "check": (0, 3, 4), "preview": (0, 4), "rl": (0, 3)}
PAGES = {
    "docs/start.md": {
        "sft",
        "check",
        "audit",
        "clean",
        "rl",
        "chat",
        "export",
        "toy",
        "fit",
        "preview",
        "evaluate",
        "report",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    commands = runnable_commands((ROOT / page).read_text(encoding="utf-8"))
    assert {command[0] for command in commands} >= PAGES[page]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    # A folder of that name is loaded instead of the model of the hub.
    write_tiny_policy(tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    write_rows(tmp_path / "mine.jsonl", rows)
    flag = {"file": "mine.jsonl", "row": 3, "hash": row_hash(rows[2]), "action": "drop"}
    write_rows(tmp_path / "flagged.jsonl", [flag])  # which a reader exports from a page
    listed = [{"arguments": [*command, *less(command)], "codes": ALLOWED.get(command[0], (0,))} for command in commands]
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_commands"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(listed),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_opens_with_the_two_commands() -> None:
    assert blocks(README)[0].commands == [["make", "quickstart"], ["make", "test"]]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", README, re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [target for target in links if target and "://" not in target and not (page.parent / target).exists()]
    missing += [config for config in re.findall(r"\bconfigs/[\w/.-]+\.yaml", text) if not (ROOT / config).exists()]
    assert not missing


def runnable_commands(text: str) -> list[list[str]]:
    """Arguments of `dpr` in the blocks of bash that are run."""
    return [
        command[1:] for block in blocks(text) if block.language == "bash" and block.is_run for command in block.commands
    ]


def less(command: list[str]) -> list[str]:
    """What makes this command cheap."""
    keys = [command[0], *(f"{command[0]} {word}" for word in command[1:] if word.startswith("configs/"))]
    return [word for key in keys for word in shlex.split(LESS.get(key, ""))]
