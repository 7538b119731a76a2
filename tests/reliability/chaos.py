"""Kills a run again and again, lets it go on, and compares what it leaves with a run that was never killed.

``python -m tests.reliability.chaos --kills 100 --seed 0 --folder .cache/chaos`` prints a line for each kill and a
summary. Every attempt is a fork of this process, which has imported everything, and begins as ``dpr fit`` begins.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpr_lightning.callbacks import checkpoint_store, reference_checkpoints
from dpr_lightning.cli.main import main as dpr
from dpr_lightning.data import rollout_schedule as drawing
from dpr_lightning.data import token_cache
from dpr_lightning.errors import REQUEUE
from tests.reliability.runs import STAGES, differences, write_configs, write_inputs

KINDS = ("SIGKILL", "SIGTERM", "checkpoint", "sealed", "rollout", "policy", "cache")


def fork(work: Callable[[], int], log: Path) -> int:
    """Start ``work`` in a fork whose words go to ``log``; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = work()
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def die_inside(owner: Any, name: str, at: int, *, after: bool = False) -> None:
    """Make the ``at``-th call of a function the end of this process, before it is made or right after."""
    inner, calls = getattr(owner, name), 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **options)
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def wound(kind: str, at: int) -> None:
    """Prepare this process to die in the middle of something."""
    if kind == "checkpoint":
        die_inside(checkpoint_store, "_describe", at)  # the state is there, its manifest is not
    elif kind == "sealed":
        die_inside(checkpoint_store.CheckpointStore, "finish", at, after=True)  # the ones before are not pruned yet
    elif kind == "rollout":
        die_inside(drawing, "sample", at, after=True)
    elif kind == "policy":
        die_inside(reference_checkpoints, "save_policy", at)
    elif kind == "cache":
        die_inside(token_cache, "whole_folder", at, after=True)


def attempt(config: Path, log: Path, kind: str | None, chance: random.Random, duration: float) -> str:
    """Run ``dpr fit`` once, wounded or not; how it ended: ``done``, or what was done to it."""

    def work() -> int:
        if kind is not None:
            wound(kind, chance.randint(1, 4))
        return dpr(["fit", "--config", str(config)])

    child = fork(work, log)
    ended = status = 0
    if kind in ("SIGKILL", "SIGTERM"):
        deadline = time.monotonic() + chance.uniform(0.0, duration)
        while time.monotonic() < deadline and not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.kill(child, getattr(signal, kind))
    if not ended:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    if code == REQUEUE:
        return "saved and stopped"
    if code:
        raise SystemExit(f"{config.name} ended with {code} after {kind}:\n{log.read_text()[-4000:]}")
    return "done"


def clean_run(folder: Path, inputs: Path) -> dict[str, float]:
    """Both stages, undisturbed; seconds that each took."""
    seconds = {}
    for stage, config in write_configs(inputs, folder / "run").items():
        started = time.monotonic()
        attempt(config, folder / f"{stage}.log", None, random.Random(0), 0.0)
        seconds[stage] = time.monotonic() - started
    (folder / "run").rename(folder / "clean")
    return seconds


def chaos(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill ``kills`` times over as many runs as that takes; a summary.

    Raises:
        SystemExit: a run ended otherwise than by our hand, or left something else than the clean one.
    """
    torch.set_num_threads(1)
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    write_inputs(inputs)
    seconds = clean_run(folder, inputs)
    chance, counts, runs, resumes = random.Random(seed), Counter[str](), 0, 0
    while sum(counts.values()) < kills:
        stage = STAGES[runs % len(STAGES)]
        # Configs hold the folder of the run, and so does what it leaves: every victim lives in the same place.
        config = write_configs(inputs, folder / "run")[stage]
        log = folder / f"{stage}_{runs}.log"
        ended = ""
        while ended != "done":
            expected = sum(counts.values()) < kills and chance.random() < 0.85
            kind = chance.choice(KINDS) if expected else None
            ended = attempt(config, log, kind, chance, seconds[stage])
            if ended != "done":
                counts[f"{kind}: {ended}"] += 1
                resumes += log.read_text().count("Going on after step") > 0
                print(f"run {runs} {stage}: {kind}, {ended}", flush=True)
        result = differences(folder / "clean" / stage, folder / "run" / stage)
        if result:
            raise SystemExit(f"run {runs} ({stage}) left something else than an undisturbed run: {result[:10]}")
        (folder / "run").rename(folder / f"run_{runs}")
        runs += 1
    return {"kills": sum(counts.values()), "runs": runs, "identical": runs, "how": dict(sorted(counts.items()))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(chaos(options.folder, options.kills, options.seed), indent=2))
