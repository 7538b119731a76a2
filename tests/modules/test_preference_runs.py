"""Algorithms of pairs through `dpr fit`: they go on to the bit, learn the same on two ranks, and are planned."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpr_lightning.cli.plan_command import plan
from tests.gates.cases import OPTIMIZER, STOPPED, Runs
from tests.live_peak import measured_peak
from tests.training import QUIET
from tests.workspace import write_rows

PAIRS = [
    {"prompt": f"{n} + 1 =", "chosen": "Answer: " + "9" * (1 + n % 3), "rejected": "7" * (2 + n % 5)} for n in range(12)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("preferences"))


def dpo(runs: Runs) -> dict[str, Any]:
    policy = str(runs.inputs / "policy")
    return {
        "model": {
            "class_path": "dpr_lightning.modules.SelfPlay",
            "init_args": {"policy": {"source": policy}, "loss": "dpo", "optimizer": OPTIMIZER},
        },
        "data": {
            "class_path": "dpr_lightning.data.PreferenceDataModule",
            "init_args": {
                "train": write_rows(runs.folder / "pairs.jsonl", PAIRS),
                "opponent": policy,
                "validation": None,
                "batch_size": 3,
                "cache_dir": str(runs.folder / "cache"),
            },
        },
    }


CONFIGS = [dpo]


@pytest.mark.parametrize("configured", CONFIGS)
def test_it_goes_on_to_the_bit(configured: Callable[[Runs], dict[str, Any]], runs: Runs) -> None:
    config, name = configured(runs), configured.__name__
    whole = runs.fit(f"{name}_whole", config, steps=4, accumulate=2)
    stop = {"class_path": "tests.reliability.runs.Preemption", "init_args": {"at": 2}}
    runs.fit(f"{name}_stopped", config, steps=4, accumulate=2, extra=[stop], code=STOPPED)
    assert runs.fit(f"{name}_stopped", config, steps=4, accumulate=2) == whole


def test_two_ranks_learn_the_same(runs: Runs) -> None:
    config = dpo(runs)
    whole = copy.deepcopy(config)
    # All pairs in each step, since which ones share a step depends on the number of ranks.
    config["data"]["init_args"]["batch_size"], whole["data"]["init_args"]["batch_size"] = 6, 12
    one, two = runs.fit("one", whole, steps=3), runs.fit("two", config, steps=3, strategy="ddp")
    losses = [[value for key, value in values.items() if "train/loss" in key] for values in (one, two)]
    assert losses[0]
    assert torch.tensor(losses[0]).sub(torch.tensor(losses[1])).abs().max() < 1e-5


@pytest.mark.parametrize("configured", CONFIGS)
def test_its_memory_is_counted(configured: Callable[[Runs], dict[str, Any]], runs: Runs, tmp_path: Path) -> None:
    config = configured(runs)
    rows = [{"prompt": chr(97 + n), "chosen": "1" * 30, "rejected": "2" * 30} for n in range(8)]
    config["data"]["init_args"] |= {
        "train": write_rows(tmp_path / "rows.jsonl", rows),
        "max_length": 32,
        "batch_size": 4,
    }
    trainer = {**QUIET, "use_distributed_sampler": False, "max_steps": 2, "default_root_dir": str(tmp_path / "run")}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config | {"trainer": trainer}))
    measured, planned = measured_peak(str(path)), plan(["--config", str(path)]).peak
    assert planned == pytest.approx(measured, rel=0.1)
