"""The end of `dpr fit` names what was saved, and a command that works."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dpr_lightning.callbacks import ReferenceCheckpoints
from dpr_lightning.cli.main import main
from dpr_lightning.lightning_cli.saved_policies import print_saved
from tests.workspace import Workspace, write_sft_config

POLICIES = "dpr_lightning.callbacks.ReferenceCheckpoints"
RESUMABLE = "dpr_lightning.callbacks.ResumableCheckpoints"


def test_the_printed_command_answers_prompts(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in Path(workspace.demonstrations).read_text().splitlines()]
    renamed = [{"ask": row["prompt"], "say": row["completion"]} for row in rows]
    Path("my rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    config = write_sft_config(tmp_path, {"source": workspace.sft}, "my rows.jsonl")
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"] |= {
        "max_steps": 2,
        "enable_checkpointing": True,
        "callbacks": [
            {"class_path": POLICIES, "init_args": {"folder": "out/my policies", "fractions": [0.5]}},
            {"class_path": RESUMABLE, "init_args": {"folder": "out/checkpoints"}},
        ],
    }
    content["data"]["init_args"] |= {
        "columns": {"prompt": "ask", "completion": "say"},
        "train": [{"path": "my rows.jsonl"}],
    }
    Path(config).write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", config]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Next: " in line]
    assert "The policy is in out/my policies/final, its references in the same folder: step_0000001 (50%)." in line
    assert "Checkpoints: out/checkpoints." in line
    program, *arguments = shlex.split(line.partition("Next: ")[2])
    assert program == "dpr"
    assert main(arguments) == 0
    answered = capsys.readouterr().out
    assert renamed[0]["ask"] in answered
    # A run that is finished names them too; one that saves nothing, or only tries, is silent.
    assert main(["fit", "--config", config]) == 0
    assert "Next: dpr generate" in capsys.readouterr().out
    shutil.rmtree("out")
    assert main(["fit", "--config", config, "--trainer.fast_dev_run", "true"]) == 0
    assert "Next:" not in capsys.readouterr().out


@pytest.mark.parametrize(("rank_0", "complete", "lines"), [(True, True, 1), (False, True, 0), (True, False, 0)])
def test_rank_0_alone_names_what_was_saved(
    rank_0: bool, complete: bool, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = ReferenceCheckpoints(str(tmp_path))
    policies.written = {"final": 1.0} if complete else {"step_0000001": 0.5}
    trainer: Any = SimpleNamespace(callbacks=[policies], is_global_zero=rank_0, fast_dev_run=False)
    print_saved(trainer, None)
    assert len(capsys.readouterr().out.splitlines()) == lines
