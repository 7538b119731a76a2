"""The end of `dpr fit` names what was saved, and a command that works."""

import json
import re
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
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "out", "name": "log"},
        },
        "val_check_interval": 1,
        "callbacks": [
            {"class_path": POLICIES, "init_args": {"folder": "out/my policies", "fractions": [0.5]}},
            {"class_path": RESUMABLE, "init_args": {"folder": "out/checkpoints"}},
        ],
    }
    content["data"]["init_args"] |= {
        "columns": {"prompt": "ask", "completion": "say"},
        "train": [{"path": "my rows.jsonl"}],
        "validation": "my rows.jsonl",
        "allow_overlap": True,
    }
    Path(config).write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", config]) == 0
    saved, scores, verdict, *commands = capsys.readouterr().out.splitlines()
    assert "The policy is in out/my policies/final, its references in the same folder: step_0000001 (50%)." in saved
    assert "Checkpoints: out/checkpoints." in saved
    assert re.fullmatch(r"First → last: validation nll [\d.]+ → [\d.]+, validation token accuracy .*\.", scores)
    assert verdict.startswith("Whether SFT is finished is unknown: it was validated twice")
    outputs = []
    for line, purpose in zip(commands, ("Next, its answers: dpr", "Next, where their reward leads: dpr"), strict=True):
        program, *arguments = shlex.split(line.removeprefix(purpose).join(["dpr", ""]))
        assert (program, line[: len(purpose)]) == ("dpr", purpose)
        assert main([*arguments, *(["--samples=2", "--max_new_tokens=2"] if arguments[0] == "preview" else [])]) == 0
        outputs.append(capsys.readouterr().out)
    assert renamed[0]["ask"] in outputs[0]
    assert "without a verifier only its length can be estimated" in outputs[1]
    # A run that is finished names them too; one that saves nothing, or only tries, is silent.
    assert main(["fit", "--config", config]) == 0
    assert "Next, its answers: dpr generate" in capsys.readouterr().out
    shutil.rmtree("out")
    assert main(["fit", "--config", config, "--trainer.fast_dev_run", "true"]) == 0
    assert "Next" not in capsys.readouterr().out


@pytest.mark.parametrize(("rank_0", "complete", "lines"), [(True, True, 2), (False, True, 0), (True, False, 0)])
def test_rank_0_alone_names_what_was_saved(
    rank_0: bool, complete: bool, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = ReferenceCheckpoints(str(tmp_path))
    policies.written = {"final": 1.0} if complete else {"step_0000001": 0.5}
    trainer: Any = SimpleNamespace(
        callbacks=[policies], loggers=[], is_global_zero=rank_0, fast_dev_run=False, lightning_module=None
    )
    print_saved(trainer, None)
    assert len(capsys.readouterr().out.splitlines()) == lines
