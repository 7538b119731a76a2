"""How runs end before their last step: a limit of time, Ctrl-C, a callback's decision, a trial of one batch."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import yaml
from lightning import Callback

from dpr_lightning.callbacks import run_ends
from dpr_lightning.callbacks.checkpoint_store import CheckpointStore
from dpr_lightning.cli.main import main
from tests.reliability.runs import differences, write_configs, write_inputs

TIMER = "lightning.pytorch.callbacks.timer.time"
EARLY = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}


class Presses(Callback):
    """Ctrl-C in the steps ``at``."""

    def __init__(self, at: list[int]) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Press it."""
        if trainer.global_step in self.at:
            self.at = [step for step in self.at if step != trainer.global_step]
            os.kill(os.getpid(), signal.SIGINT)


class SaysStop(Callback):
    """Decides at a step that this was the last."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Say so."""
        if trainer.global_step == 5:
            trainer.should_stop = True


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def one_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a second: one a step, and some before and after each validation."""
    seconds = iter(range(1_000_000))
    monkeypatch.setattr(TIMER, SimpleNamespace(monotonic=lambda: next(seconds)))


def write_config(inputs: Path, output: Path, stage: str = "sft", *added: dict[str, Any], resumable: bool = True) -> str:
    """A config whose last callback, unless left out, is ResumableCheckpoints."""
    path = write_configs(inputs, output)[stage]
    config = yaml.safe_load(path.read_text())
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [*callbacks[:-1], *added, *(callbacks[-1:] if resumable else [])]
    config["run"] = {} if resumable else {"resume_every_n_steps": None}
    path.write_text(yaml.safe_dump(config))
    return str(path)


def exit_code(arguments: list[str]) -> int:
    """Of `dpr fit`, which a saved stop leaves by SystemExit."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def named(folder: Path) -> dict[str, float]:
    """What references.json lists."""
    listed: dict[str, float] = json.loads((folder / "references.json").read_text())
    return listed


@pytest.mark.parametrize(
    ("stage", "seconds", "first"), [pytest.param("sft", 16, 10, marks=pytest.mark.slow), ("dpr", 4, 12)]
)
def test_time_is_that_of_a_process_and_the_run_goes_on_to_the_bit(
    stage: str,
    seconds: int,
    first: int,
    inputs: Path,
    tmp_path: Path,
    one_second_a_step: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = ["fit", "--config", write_config(inputs, tmp_path / "run", stage)]
    assert main(fit) == 0
    (tmp_path / "run").rename(tmp_path / "clean")
    write_config(inputs, tmp_path / "run", stage)
    limited = [*fit, "--trainer.max_time", f"00:00:00:{seconds:02}"]
    policies = tmp_path / "run" / stage / "policies"
    assert exit_code(limited) == 75
    assert f"`trainer.max_time` is used up: step {first} of 30 is saved. The same command goes on" in caplog.text
    assert not (policies / "final").exists()
    assert named(policies)["interrupted"] == first / 30
    ends = [75]
    while ends[-1] == 75:
        assert len(ends) < 9
        ends.append(exit_code(limited))
    assert ends[-1] == 0
    assert len(ends) > 2
    assert not differences(tmp_path / "clean" / stage, tmp_path / "run" / stage)


def test_time_without_checkpoints_is_no_end_either(
    inputs: Path, tmp_path: Path, one_second_a_step: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(inputs, tmp_path / "run", resumable=False)
    fit = ["fit", "--config", config, "--trainer.max_time", "00:00:00:06"]
    assert main(fit) == 0
    assert "is used up at step " in caplog.text
    policies = tmp_path / "run" / "sft" / "policies"
    # A reference of the steps so far, for there was none due.
    assert set(named(policies)) == {"step_0000002", "step_0000001", "interrupted"}
    assert not (policies / "final").exists()
    # The remedy that the message prints works.
    remedy = caplog.text.split("With `")[1].split("` it goes on")[0].split()
    assert exit_code([*fit, *remedy]) == 75
    assert exit_code([*fit, *remedy]) == 75
    assert caplog.text.count("is saved. The same command goes on") == 2


def test_a_run_that_stopped_early_is_finished(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stops = EARLY | {"init_args": {"monitor": "validation/nll", "mode": "max", "patience": 2}}
    fit = ["fit", "--config", write_config(inputs, tmp_path / "run", "sft", stops)]
    assert main(fit) == 0
    assert "A callback ended the run at step 8 of 30: it is finished." in caplog.text
    assert (
        "ended at step 8 of 30, before the references of steps 9, 18 were due. step_0000004 (0.5 of it)" in caplog.text
    )
    run = tmp_path / "run" / "sft"
    assert named(run / "policies") == {"step_0000004": 0.5, "step_0000008": 1.0, "final": 1.0, "ema": 1.0}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "config.yaml"}
    assert main(fit) == 0
    assert "This run is finished: nothing was left to do. A callback ended it at step 8 of 30." in caplog.text
    assert before == {path: path.read_bytes() for path in before}
    # With another rule it goes on, and drops what stood in for a reference.
    other = str(
        write_config(inputs, tmp_path / "run", "sft", stops | {"init_args": {**stops["init_args"], "patience": 99}})
    )
    assert main(["fit", "--config", other]) == 0
    assert CheckpointStore(run / "checkpoints").steps()[0] == 30
    assert set(named(run / "policies")) == {"step_0000009", "step_0000018", "final", "ema"}
    assert not (run / "policies" / "step_0000004").exists()


def test_any_callback_may_finish_a_run(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    added = {"class_path": "tests.reliability.test_run_ends.SaysStop"}
    fit = ["fit", "--config", write_config(inputs, tmp_path / "run", "sft", added)]
    assert main(fit) == 0
    assert "No earlier policy was written" in caplog.text
    assert main(fit) == 0
    assert "A callback ended it at step 5 of 30." in caplog.text
    assert CheckpointStore(tmp_path / "run" / "sft" / "checkpoints").steps()[0] == 5


def test_ctrl_c_saves_and_goes_on(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    added = {"class_path": "tests.reliability.test_run_ends.Presses", "init_args": {"at": [5]}}
    before = signal.getsignal(signal.SIGINT)
    assert exit_code(["fit", "--config", write_config(inputs, tmp_path / "run", "sft", added)]) == 130
    assert "Again: it stops at once" in capfd.readouterr().err
    assert "Stopped by Ctrl-C: step 6 of 30 is saved. The same command goes on" in caplog.text
    assert CheckpointStore(tmp_path / "run" / "sft" / "checkpoints").steps()[0] == 6
    assert signal.getsignal(signal.SIGINT) is before
    fit = ["fit", "--config", write_config(inputs, tmp_path / "run", "sft")]
    assert main([*fit, "--trainer.max_steps", "7"]) == 0
    assert "Going on after step 6" in caplog.text


def test_a_second_ctrl_c_ends_at_once(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rollout of DPR serves three steps: the first one waits for its end.
    added = {"class_path": "tests.reliability.test_run_ends.Presses", "init_args": {"at": [6, 7]}}
    monkeypatch.setattr(run_ends, "SAME_PRESS_S", 0.0)
    before = signal.getsignal(signal.SIGINT)
    config = write_config(inputs, tmp_path / "run", "dpr", added)
    try:
        assert exit_code(["fit", "--config", config]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped by Ctrl-C. The same command goes on from step 6" in capsys.readouterr().err


def test_a_run_without_an_end_is_ended_by_time(inputs: Path, tmp_path: Path, one_second_a_step: None) -> None:
    """Fractions of it cannot be taken; its schedule has a length."""
    config = Path(write_config(inputs, tmp_path / "run", "dpr"))
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"max_steps": -1, "max_epochs": -1, "max_time": "00:00:00:04"}
    content["trainer"]["callbacks"][0]["init_args"]["fractions"] = []
    content["model"]["init_args"]["schedule"] = {"total_steps": 30}
    config.write_text(yaml.safe_dump(content))
    assert exit_code(["fit", "--config", str(config)]) == 75
    assert exit_code(["fit", "--config", str(config)]) == 75
    policies = tmp_path / "run" / "dpr" / "policies"
    assert (policies / "interrupted" / "model.safetensors").is_file()
    assert named(policies) == {"interrupted": 0.0}


def test_ctrl_c_without_checkpoints_says_how_to_have_them(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = {"class_path": "tests.reliability.test_run_ends.Presses", "init_args": {"at": [2]}}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        code = exit_code(["fit", "--config", write_config(inputs, tmp_path / "run", "sft", added, resumable=False)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "This run saves no checkpoints, so the same command begins anew" in capsys.readouterr().err


def test_a_trial_writes_over_nothing(inputs: Path, tmp_path: Path) -> None:
    for stage in ("sft", "dpr"):
        fit = ["fit", "--config", write_config(inputs, tmp_path / "run", stage), "--trainer.max_steps", "6"]
        assert main(fit) == 0
        run = tmp_path / "run" / stage
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert main([*fit, "--trainer.fast_dev_run", "true"]) == 0
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
