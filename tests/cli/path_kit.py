"""Commands on the files of a small folder, and a check that a refused command leaves every file unchanged."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.cli.main import main

SFT = "dpr_lightning.callbacks.ReferenceCheckpoints"
RESUMABLE = "dpr_lightning.callbacks.ResumableCheckpoints"
POLICY = ["--policy", "sft", "--prompts", "prompts.jsonl"]
REWARD = ["--sft", "sft", "--references", "[reference]"]
EXPORT = ["export", "--source", "sft", "--output"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fit(source: str, *more: str, output: str = "out") -> list[str]:
    """SFT of two steps that leaves policies and a log in a folder."""
    folder = Path(output)
    config = {
        "model": {"class_path": "dpr_lightning.modules.SupervisedIRL", "init_args": {"policy": {"source": source}}},
        "data": {
            "class_path": "dpr_lightning.data.DemonstrationDataModule",
            "init_args": {"train": "demonstrations.jsonl", "batch_size": 4, "cache_dir": None},
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "log_every_n_steps": 1,
            "default_root_dir": output,
            "logger": [
                {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": output, "name": "", "version": ""},
                }
            ],
            "callbacks": [
                {"class_path": SFT, "init_args": {"folder": str(folder / "policies"), "fractions": [0.5]}},
                {"class_path": RESUMABLE, "init_args": {"folder": str(folder / "checkpoints")}},
            ],
        },
    }
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    return ["fit", "--config", "fit.yaml", *more]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *says: str) -> str:
    """The message of a command that is refused, and leaves every file as it was."""
    before = snapshot(Path.cwd())
    assert main(arguments) == 2
    message = capsys.readouterr().err
    for part in says:
        assert part in message
    assert snapshot(Path.cwd()) == before
    return message


class Begun(Exception):
    """The command got past all checks."""


def begin(arguments: list[str]) -> None:
    """Run a command up to the moment at which its locks are taken."""
    with pytest.MonkeyPatch.context() as patch:

        def begun(*_: Any, **__: Any) -> Any:
            raise Begun

        patch.setattr("dpr_lightning.lightning_cli.path_checks.write_lock", begun)
        main([*arguments, "--debug"])
