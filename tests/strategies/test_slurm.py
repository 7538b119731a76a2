"""The batch script of docs/scaling.md, as written but for its size, under a stand-in for SLURM's own programs."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpr_lightning.cli.main import main
from tests.strategies.launch import ROOT, free_port

TOY = "toy --output runs/toy --demonstrations 40 --prompts 64 --development 8 --test 8 --hidden_size 32 --layers 2"
SIZE = ("configs/8b/sft.yaml --trainer.num_nodes 2", "configs/toy/sft.yaml --config configs/strategy/ddp.yaml $ALL")
ALL = "--trainer.devices 2 --trainer.accelerator cpu --trainer.logger false --trainer.max_steps"
# Starts both tasks with the variables that srun sets, passes signals on, and ends with the highest code.
SRUN = """#!/bin/bash
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" > task_$task.log 2>&1 & tasks="$tasks $!"; done
trap 'kill -TERM $tasks' TERM
highest=0
for task in $tasks; do
    wait $task; code=$?
    while kill -0 $task 2> /dev/null; do wait $task; code=$?; done
    [ $code -gt $highest ] && highest=$code
done
exit $highest
"""


# Runs until it gets a signal, as a training does, or ends with $CODE.
STAND_IN = """#!/bin/bash
trap 'exit 75' TERM
echo "$@" > arguments_$SLURM_PROCID
[ -n "$CODE" ] && exit $CODE
while true; do sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the script, and programs named as those of SLURM; its `dpr` trains nothing."""
    programs = {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" > requeued\n', "dpr": STAND_IN}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    blocks = (ROOT / "docs" / "scaling.md").read_text().split("```bash\n")[1:]
    (script,) = (block.split("```")[0] for block in blocks if "#SBATCH" in block)
    assert SIZE[0] in script
    (tmp_path / "job.sh").write_text(script.replace(*SIZE))
    return tmp_path


@pytest.fixture
def training_cluster(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with a toy and `dpr` itself."""
    (cluster / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(cluster)
    assert main(shlex.split(TOY)) == 0
    (cluster / "bin" / "dpr").write_text(f'#!/bin/bash\nexec {sys.executable} -m dpr_lightning.cli.main "$@"\n')
    return cluster


def start(cluster: Path, steps: int, **variables: str) -> "subprocess.Popen[bytes]":
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "dpr", "SLURM_NODELIST": "localhost"}
    indices = {"PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "ALL": f"{ALL} {steps}"}
    environment = {**os.environ, **slurm, **indices, **variables, "MASTER_PORT": str(free_port())}
    return subprocess.Popen(["bash", "job.sh"], env=environment, cwd=cluster, start_new_session=True)


def logs(cluster: Path) -> str:
    return "".join(path.read_text(errors="replace")[-2000:] for path in cluster.glob("task_*.log"))


def preempt(job: "subprocess.Popen[bytes]", cluster: Path, started: str) -> None:
    """Send the signal to the steps of the job and not to its script, as SLURM does, once a file is there."""
    try:
        deadline = time.monotonic() + 200
        while not list(cluster.glob(started)):
            assert job.poll() is None, logs(cluster)
            assert time.monotonic() < deadline, logs(cluster)
            time.sleep(0.05)
        subprocess.run(["pkill", "-TERM", "-P", str(job.pid), "srun"], check=True)
        assert job.wait(100) == 75, logs(cluster)
    finally:
        os.killpg(job.pid, signal.SIGKILL) if job.poll() is None else None
    assert (cluster / "requeued").read_text().split() == ["requeue", "7"]


def test_the_script_hands_back_a_preempted_job(cluster: Path) -> None:
    preempt(start(cluster, 4), cluster, "arguments_1")
    assert (cluster / "arguments_0").read_text().split()[:3] == ["fit", "--config", "configs/toy/sft.yaml"]


@pytest.mark.parametrize("code", [0, 2])
def test_the_script_ends_with_the_code_of_the_run(code: int, cluster: Path) -> None:
    assert start(cluster, 4, CODE=str(code)).wait(100) == code
    assert not (cluster / "requeued").exists()


@pytest.mark.slow
def test_a_job_trains_on_all_its_tasks(training_cluster: Path) -> None:
    job = start(training_cluster, 4)
    assert job.wait(200) == 0, logs(training_cluster)
    assert "MEMBER: 2/2" in logs(training_cluster)
    assert (training_cluster / "runs/toy/sft/policies/final/model.safetensors").is_file()
    assert not (training_cluster / "requeued").exists()


@pytest.mark.slow
def test_a_training_that_is_preempted_saves_and_is_handed_back(training_cluster: Path) -> None:
    preempt(start(training_cluster, 100_000), training_cluster, "runs/toy/sft/checkpoints/step_*")
