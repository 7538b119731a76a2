"""A run that was killed goes on, by the same command, to what it would have become."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpr_lightning.callbacks import checkpoint_store
from dpr_lightning.callbacks.checkpoint_store import CheckpointStore
from dpr_lightning.cli.main import main, run
from dpr_lightning.errors import REQUEUE
from tests.fork_server import ForkedProcess
from tests.reliability.runs import differences, write_configs, write_inputs
from tests.strategies.launch import run_ranks, start_ranks

ZERO2 = str(Path(__file__).parents[2] / "configs" / "strategy" / "zero2.yaml")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.mark.slow
def test_chaos(tmp_path: Path) -> None:
    """Twenty deaths at random moments, and in the middle of checkpoints, rollouts, policies and caches."""
    command = [sys.executable, "-m", "tests.reliability.chaos", "--kills", "20", "--folder", str(tmp_path / "chaos")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    summary = json.loads(ended.stdout[ended.stdout.index("{") :])
    assert summary["kills"] == 20
    assert summary["identical"] == summary["runs"] > 1


def test_a_death_right_after_a_policy_was_exchanged_leaves_no_folder(inputs: Path, tmp_path: Path) -> None:
    """Its temporary name has the former policy then, which no later step of the run writes again."""
    config = write_configs(inputs, tmp_path / "run")["sft"]
    fit = ["fit", "--config", str(config), "--trainer.max_steps", "8"]
    assert main(fit) == 0
    policies = tmp_path / "run" / "sft" / "policies"
    before = sorted(path.name for path in policies.iterdir())
    shutil.copytree(policies / "step_0000005", policies / ".step_0000005.a1b2c3d4")
    (policies / ".references.json.part").write_text("{")
    assert main(fit) == 0
    assert sorted(path.name for path in policies.iterdir()) == before


@pytest.mark.parametrize(("stage", "steps", "saved"), [("sft", 5, 6), ("dpr", 7, 9)])
def test_a_scheduler_gets_the_machine_back(
    stage: str, steps: int, saved: int, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SFT ends the step that it is in; DPR the rollout, whose three steps a checkpoint does not part."""
    config = write_configs(inputs, tmp_path / "run")[stage]
    interrupted = config.with_name("interrupted.yaml")
    content = yaml.safe_load(config.read_text())
    preemption = {"class_path": "tests.reliability.runs.Preemption", "init_args": {"at": steps}}
    content["trainer"]["callbacks"].append(preemption)
    interrupted.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(interrupted)])
    assert ended.value.code == REQUEUE == 75
    assert f"step {saved} of 30 is saved" in caplog.text
    assert CheckpointStore(tmp_path / "run" / stage / "checkpoints").steps()[0] == saved


def test_a_damaged_checkpoint_is_passed_over(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_configs(inputs, tmp_path / "run")["dpr"]
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "9"]) == 0
    store = CheckpointStore(tmp_path / "run" / "dpr" / "checkpoints")
    assert store.steps() == [9, 6]
    state = store.state(9)
    whole = state.read_bytes()
    for damage, says in ((whole[:-7], "bytes instead of"), (whole[:900] + b"\x00" + whole[901:], "checksum")):
        state.write_bytes(damage)
        assert store.newest() == 6
        assert says in caplog.text
        caplog.clear()
    # The run goes on from the one before and writes the damaged one anew.
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "12"]) == 0
    assert store.steps() == [12, 9]
    assert store.fault(9) is None
    (store.folder / "step_0000012" / "manifest.json").write_text('{"step": 12,')
    (store.folder / "step_0000009" / "manifest.json").write_text('{"step": 9,')
    assert store.newest() is None


def test_rollouts_that_the_run_itself_kept_do_not_make_it_another(inputs: Path, tmp_path: Path) -> None:
    config = write_configs(inputs, tmp_path / "run")["dpr"]
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["kl"] = {"coefficient": 0.5}  # a target needs samples of the policy itself
    content["data"]["init_args"]["precomputed"] = str(tmp_path / "rollouts")
    config.write_text(yaml.safe_dump(content))
    fit = ["fit", "--config", str(config), "--trainer.max_steps"]
    assert main([*fit, "3"]) == 0
    assert (tmp_path / "rollouts").is_dir()
    assert main([*fit, "6"]) == 0
    assert CheckpointStore(tmp_path / "run" / "dpr" / "checkpoints").steps() == [6, 3]


def test_the_saved_config_of_a_run_that_began_anew_goes_on(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_configs(inputs, tmp_path / "run")["sft"]
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "2", "--ckpt_path", "none"]) == 0
    saved = str(tmp_path / "run" / "sft" / "config.yaml")
    assert "Going on after" not in caplog.text
    assert main(["fit", "--config", saved, "--trainer.max_steps", "3"]) == 0
    assert "Going on after step 2" in caplog.text


def test_what_a_run_is_cannot_change_by_the_way(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_configs(inputs, tmp_path / "run")["sft"]
    fit = ["fit", "--config", str(config), "--trainer.max_steps"]
    assert main([*fit, "4"]) == 0
    other = tmp_path / "other.jsonl"
    other.write_text((inputs / "rows.jsonl").read_text().replace("Answer", "Reply"))
    for options, says in (
        (["--seed_everything", "7"], "seed_everything: 0 then, 7 now"),
        (["--data.train", str(other)], "data.init_args.train: the file differs, in its name or its content"),
        (["--data.batch_size", "2"], "data.init_args.batch_size: 3 then, 2 now"),
        (["--model.policy.source", str(inputs / "reference")], "model.init_args.policy.source: the folder differs"),
        (["--trainer.accumulate_grad_batches", "1"], "trainer.accumulate_grad_batches: 2 then, 1 now"),
        (["--config", ZERO2], "strategy: SingleDeviceStrategy then, Zero2Strategy now"),
    ):
        assert main([*fit, "8", *options]) == 2
        message = capsys.readouterr().err
        assert says in message
        assert "--ckpt_path none" in message
        assert "Traceback" not in message
    # The same file somewhere else is the same file.
    same = tmp_path / "moved" / "rows.jsonl"
    same.parent.mkdir()
    same.write_bytes((inputs / "rows.jsonl").read_bytes())
    assert main([*fit, "6", "--data.train", str(same)]) == 0


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def test_a_checkpoint_is_not_unpickled(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_configs(inputs, tmp_path / "run")["sft"]
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "4"]) == 0
    bait, trace = tmp_path / "bait.ckpt", tmp_path / "trace"
    store = CheckpointStore(tmp_path / "run" / "sft" / "checkpoints")
    content = torch.load(store.state(4), weights_only=True)
    torch.save(content | {"hyper_parameters": Trap(trace)}, bait)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "8", "--ckpt_path", str(bait)]) == 2
    assert "--weights_only false" in capsys.readouterr().err
    assert not trace.exists()
    main(["fit", "--config", str(config), "--trainer.max_steps", "8", "--ckpt_path", str(bait), "--weights_only=false"])
    assert trace.exists()


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_a_finished_run_can_be_made_longer(dropout: float, inputs: Path, tmp_path: Path) -> None:
    schedule = ["--model.schedule.kind", "constant", "--model.schedule.warmup_fraction", "0"]
    if dropout:
        schedule += [f"--model.policy.lora.dropout={dropout}", "--model.policy.lora.rank=4"]
    result = []
    for name, lengths in (("once", [11]), ("thrice", [2, 8, 11])):
        config = write_configs(inputs, tmp_path / name)["sft"]
        for steps in lengths:
            assert main(["fit", "--config", str(config), "--trainer.max_steps", str(steps), *schedule]) == 0
        state = CheckpointStore(tmp_path / name / "sft" / "checkpoints").state(11)
        result.append(torch.load(state, weights_only=True)["state_dict"])
    assert all(torch.equal(result[0][name], result[1][name]) for name in result[0])


def test_the_command_line_wins_over_the_checkpoint(inputs: Path, tmp_path: Path) -> None:
    config = write_configs(inputs, tmp_path / "run")["sft"]
    fit = ["fit", "--config", str(config), "--trainer.max_steps"]
    schedule = ["--model.schedule.kind", "constant", "--model.schedule.warmup_fraction", "0"]
    assert main([*fit, "4", *schedule]) == 0
    assert main([*fit, "8", *schedule, "--model.optimizer.lr", "0.25", "--model.optimizer.weight_decay", "0.5"]) == 0
    store = CheckpointStore(tmp_path / "run" / "sft" / "checkpoints")
    content = torch.load(store.state(8), weights_only=True)
    group = content["optimizer_states"][0]["param_groups"][0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.25, 0.25, 0.5)


def test_hyper_parameters_of_a_checkpoint_do_not_win_over_the_command_line(inputs: Path, tmp_path: Path) -> None:
    """LightningCLI would set what a checkpoint remembers after it has read the command line."""
    config = write_configs(inputs, tmp_path / "run")["sft"]
    fit = ["fit", "--config", str(config), "--trainer.max_steps"]
    assert main([*fit, "4"]) == 0
    state = CheckpointStore(tmp_path / "run" / "sft" / "checkpoints").state(4)
    content = torch.load(state, weights_only=True) | {"hyper_parameters": {"seed": 77}}
    torch.save(content, tmp_path / "foreign.ckpt")
    started = run([*fit, "8", "--ckpt_path", str(tmp_path / "foreign.ckpt"), "--model.seed", "5"])
    assert started.trainer.global_step == 8
    assert started.model.seed == 5


def test_anew_puts_the_old_checkpoints_aside(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = write_configs(inputs, tmp_path / "run")["sft"]
    fit = ["fit", "--config", str(config), "--trainer.max_steps", "4"]
    assert main([*fit, "--ckpt_path", "last"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    assert main(fit) == 0
    metrics = (tmp_path / "run" / "sft" / "metrics.csv").read_bytes()
    # Once more, there is nothing to do, and what the run left stays as it is.
    assert main(fit) == 0
    assert "nothing was left to do" in caplog.text
    assert (tmp_path / "run" / "sft" / "metrics.csv").read_bytes() == metrics
    # A new run that is refused changes nothing.
    checkpoints = tmp_path / "run" / "sft" / "checkpoints"
    refused = ["--ckpt_path", "none", "--data.columns", "{prompt: nothing, completion: completion}"]
    assert main([*fit, *refused]) == 2
    assert not checkpoints.with_name("checkpoints.before_1").exists()
    assert CheckpointStore(checkpoints).newest() == 4
    assert (tmp_path / "run" / "sft" / "metrics.csv").read_bytes() == metrics
    caplog.clear()
    assert main([*fit, "--ckpt_path", "none", "--seed_everything", "3"]) == 0
    assert "metrics.csv is of an earlier run, and this one replaces it" in caplog.text
    assert "has policies of an earlier run (ema, final, step_" in caplog.text
    assert (tmp_path / "run" / "sft" / "checkpoints.before_1" / "step_0000004").is_dir()
    assert CheckpointStore(tmp_path / "run" / "sft" / "checkpoints").manifest(4)["identity"]["seed_everything"] == 3


def test_a_full_disk_leaves_the_checkpoints_before(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_configs(inputs, tmp_path / "run")["sft"]
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "4"]) == 0

    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint_store, "_describe", full)
    monkeypatch.setattr(checkpoint_store.CheckpointStore, "fault", lambda *_: None)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "8"]) == 2
    message = capsys.readouterr().err
    assert "step 8" in message
    assert "No space left" in message
    assert CheckpointStore(tmp_path / "run" / "sft" / "checkpoints").steps() == [4]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "Zero2Strategy", "Zero3Strategy", "Fsdp2Strategy"])
@pytest.mark.parametrize("stage", ["sft", "dpr"])
def test_two_ranks_go_on_to_the_bit(strategy: str, stage: str, inputs: Path, tmp_path: Path) -> None:
    """All ranks are killed, then one alone, then all are asked to stop."""
    named: Any = "ddp" if strategy == "ddp" else {"class_path": f"dpr_lightning.strategies.{strategy}"}
    if strategy == "Zero3Strategy":
        named["init_args"] = {"persistence_threshold": 0, "bucket_size": 5000}
    run = tmp_path / "run"

    def command() -> list[str]:
        config = write_configs(inputs, run, devices=2, strategy=named)[stage]
        return ["dpr_lightning.cli.main", "fit", "--config", str(config)]

    run_ranks(command(), 2, tmp_path / "logs")
    run.rename(tmp_path / "clean")
    store = CheckpointStore(run / stage / "checkpoints")
    for at, victims, how in ((4, (0, 1), signal.SIGKILL), (8, (1,), signal.SIGKILL), (14, (0, 1), signal.SIGTERM)):
        processes = start_ranks(command(), 2, tmp_path / "logs")
        wait_until(lambda at=at: max(store.steps(), default=0) >= at, processes)  # type: ignore[misc]
        for rank in victims:
            processes[rank].send_signal(how)
        codes = [process.wait(60) for process in processes] if how == signal.SIGTERM else finish(processes)
        assert how == signal.SIGKILL or codes == [REQUEUE, REQUEUE]
    run_ranks(command(), 2, tmp_path / "logs")
    assert not differences(tmp_path / "clean" / stage, run / stage)


def wait_until(reached: Callable[[], bool], processes: list[ForkedProcess]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def finish(processes: list[ForkedProcess]) -> list[int]:
    """Wait for ranks whose partner died; those that hang are ended as a launcher would."""
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
    return [process.wait() for process in processes]
