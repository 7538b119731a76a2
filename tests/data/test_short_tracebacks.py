"""An error that the user can correct, raised within the trainer, ends where the user's program called it."""

import traceback
from pathlib import Path

import pytest

from dpr_lightning import DemonstrationDataModule, PolicySpec, SupervisedIRL
from dpr_lightning.cli.main import main
from dpr_lightning.errors import DEBUG, InputError
from tests.training import quiet_trainer
from tests.workspace import make_workspace, write_rows, write_sft_config


def failed(folder: Path, policy: Path) -> str:
    """The traceback of a run whose second row has no completion."""
    rows = write_rows(folder / "d.jsonl", [{"prompt": "1", "completion": "2"}, {"prompt": "1", "completion": ""}])
    data = DemonstrationDataModule(rows, validation=None, cache_dir=str(folder / "cache"))
    with pytest.raises(InputError) as raised:
        quiet_trainer(folder, max_steps=1).fit(SupervisedIRL(PolicySpec(str(policy))), datamodule=data)
    return "".join(traceback.format_exception(raised.value))


def test_the_traceback_ends_at_the_call_of_the_trainer(
    tmp_path: Path, tiny_policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEBUG, raising=False)
    text = failed(tmp_path, tiny_policy_folder)
    assert "d.jsonl:2" in text
    assert "InputError" in text
    assert len(text.splitlines()) < 15
    assert "conversations.py" not in text
    assert "test_short_tracebacks.py" in text
    monkeypatch.setenv(DEBUG, "1")
    whole = failed(tmp_path, tiny_policy_folder)
    assert "conversations.py" in whole
    assert len(whole.splitlines()) > 30


def test_other_errors_keep_their_traceback(
    tmp_path: Path, tiny_policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("dpr_lightning.data.demonstrations.DemonstrationDataModule.prepare_data", fault)
    data = DemonstrationDataModule("d.jsonl")
    with pytest.raises(RuntimeError) as raised:
        quiet_trainer(tmp_path, max_steps=1).fit(SupervisedIRL(PolicySpec(str(tiny_policy_folder))), datamodule=data)
    assert "in fault" in "".join(traceback.format_exception(raised.value))


def test_debug_of_the_command_shows_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "")
    monkeypatch.delenv(DEBUG)
    rows = write_rows(tmp_path / "bad.jsonl", [{"prompt": "1", "completion": ""}])
    config = write_sft_config(tmp_path, {"source": make_workspace(tmp_path).sft}, rows)
    with pytest.raises(InputError) as raised:
        main(["fit", "--config", config, "--debug"])
    assert "conversations.py" in "".join(traceback.format_exception(raised.value))
