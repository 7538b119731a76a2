"""Whose fault an error is, and that what libraries refuse because of an option names the option."""

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException

from dpr_lightning.cli import main as cli
from dpr_lightning.cli.faults import explain
from dpr_lightning.errors import counted
from dpr_lightning.lightning_cli.library_errors import refusal
from dpr_lightning.lightning_cli.origins import origin
from tests.workspace import Workspace, make_workspace, write_dpr_config, write_sft_config

PRINTER = "from lightning import Callback\n\n\nclass Printer(Callback):\n    pass\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


class Breaks(Callback):
    """Code of a user: the mistake is in a library that it calls."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Multiply what does not fit."""
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def score(prompt: str, answer: str, metadata: dict[str, Any]) -> float:
    """A verifier of a user's that fails."""
    return float(metadata["no such column"])


def sft(folder: Path, workspace: Workspace, **trainer: Any) -> list[str]:
    """`dpr fit` for two steps of SFT."""
    config = write_sft_config(folder, {"source": workspace.sft}, workspace.demonstrations, trainer=trainer)
    return ["fit", "--config", config]


def test_the_users_code_is_named_with_its_traceback(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*sft(tmp_path, workspace), "--trainer.callbacks+=tests.cli.test_faults.Breaks"]) == 1
    message = capsys.readouterr().err
    assert "dpr fit: your callback tests.cli.test_faults.Breaks raised RuntimeError: mat1 and mat2" in message
    assert "torch.zeros(2, 3) @ torch.zeros(2, 3)" in message
    assert "jsonargparse" not in message
    assert "report" not in message


def test_a_library_is_named_where_no_option_explains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _raised_by(lambda: torch.nn.Linear(2, 2).register_parameter("weight", torch.zeros(2)))  # type: ignore[arg-type]
    assert origin(error).owner == "user"
    # Without the frames of this module it is as if a library had called the other.
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # type: ignore[union-attr]
    assert origin(error)[:2] == ("library", "torch")
    assert refusal(error, {}) is None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert explain(["fit"], error) == 1
    message = capsys.readouterr().err
    assert "torch raised TypeError: cannot assign" in message
    assert "send it" not in message


def _raised_by(function: Any) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_options_that_lightning_names_are_named_in_full() -> None:
    from lightning import Trainer

    error = _raised_by(lambda: Trainer(max_epochs=-5, accelerator="cpu", logger=False))
    assert isinstance(error, MisconfigurationException)
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # type: ignore[union-attr]
    message = refusal(error, {})
    assert message is not None
    assert message.startswith("trainer.max_epochs: `max_epochs` must be")


@pytest.mark.parametrize(("logger", "package"), [("MLFlowLogger", "mlflow"), ("CometLogger", "comet-ml")])
def test_a_logger_without_its_package(
    logger: str, package: str, tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    assert (
        cli.main([*sft(tmp_path, workspace), "--trainer.logger.class_path", f"lightning.pytorch.loggers.{logger}"]) == 2
    )
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("dpr fit: trainer.logger: ")
    assert "pip install" in message
    assert package in message
    assert len(message) < 250


def test_a_callback_in_this_folder_is_found_as_the_message_says(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "callback_of_mine.py").write_text(PRINTER)
    fit = [*sft(tmp_path, workspace), "--trainer.callbacks+=callback_of_mine.Printer"]
    monkeypatch.chdir(tmp_path)
    assert cli.main(fit) == 2
    assert "put `PYTHONPATH=.` before the command" in capsys.readouterr().err
    monkeypatch.syspath_prepend(".")
    assert cli.main(fit) == 0


def test_ctrl_c_is_said_before_there_is_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(["generate"], KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "dpr generate: stopped by Ctrl-C.\n"


def test_a_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quickstrat"]) == 2
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_terminal_lacks_are_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help texts and errors have Greek letters."""
    output, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding=encoding, write_through=True))
    assert cli.main(["generate", "--help"]) == 0
    assert b"\\u03c0" in output.getvalue()
    assert cli.main(["generate", "--β"]) == 2
    assert b"--\\u03b2" in errors.getvalue()


@pytest.mark.parametrize("stage", ["sft", "dpr"])
def test_modules_log_what_they_declare(stage: str, tmp_path: Path, workspace: Workspace) -> None:
    """What a callback may monitor is what is there after a run, and nothing else is refused."""
    config = (
        write_sft_config(
            tmp_path, {"source": workspace.sft}, workspace.demonstrations, {"non_finite": "skip"}, validation=0.3
        )
        if stage == "sft"
        else write_dpr_config(tmp_path, workspace)
    )
    fitted = cli.run(
        ["fit", "--config", config, "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "1"]
    )
    declared = {*fitted.model.train_metrics, *fitted.model.validation_metrics}
    logged = set(fitted.trainer.callback_metrics)
    assert logged <= declared
    only_sometimes = {"rollout/outcome", "rollout/sampler_gap", "rollout/importance_truncated", "rollout/verifier"}
    assert declared - logged <= only_sometimes


def test_numbers_stand_with_their_nouns() -> None:
    assert [counted(number, "step") for number in (0, 1, 2, 1000)] == ["0 steps", "1 step", "2 steps", "1,000 steps"]
