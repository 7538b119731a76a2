"""Algorithms of pairs through `dpr fit`: they go on to the bit, learn the same on two ranks, and are planned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpr_lightning.cli.plan_command import plan
from tests.gates.cases import OPTIMIZER, STOPPED, Runs, reinforcement
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


def rebel(runs: Runs) -> dict[str, Any]:
    config = reinforcement(runs.inputs, "sampled", refresh=2)
    config["model"] = {
        "class_path": "dpr_lightning.modules.RelativeRewardRegression",
        "init_args": {"policy": {"source": str(runs.inputs / "policy")}, "optimizer": OPTIMIZER, "eta": 0.5},
    }
    del config["data"]["init_args"]["held_out"]
    config["data"]["init_args"]["scorer"] = {"policy": str(runs.inputs / "reference"), "beta": 0.1}
    return config


def hypo(runs: Runs) -> dict[str, Any]:
    config = dpo(runs)
    config["model"]["class_path"] = "dpr_lightning.modules.HybridPreference"
    config["model"]["init_args"] |= {"kl_weight": 0.5, "kl_estimator": "all_actions"}
    config["data"]["class_path"] = "dpr_lightning.data.HybridDataModule"
    config["data"]["init_args"]["sampling"] = {"max_new_tokens": 8}
    return config


CONFIGS = [rebel, hypo, pytest.param(dpo, marks=pytest.mark.slow)]
"""HyPO's data are DPO's, with responses: what it shows of their order and position is true of DPO."""


@pytest.mark.parametrize("configured", CONFIGS)
def test_it_goes_on_to_the_bit(configured: Callable[[Runs], dict[str, Any]], runs: Runs) -> None:
    config, name = configured(runs), configured.__name__
    whole = runs.fit(f"{name}_whole", config, steps=4, accumulate=2)
    stop = {"class_path": "tests.reliability.runs.Preemption", "init_args": {"at": 1}}
    runs.fit(f"{name}_stopped", config, steps=4, accumulate=2, extra=[stop], code=STOPPED)
    assert runs.fit(f"{name}_stopped", config, steps=4, accumulate=2) == whole


@pytest.mark.parametrize("configured", CONFIGS)
def test_two_ranks_learn_the_same(configured: Callable[[Runs], dict[str, Any]], runs: Runs) -> None:
    whole, config = configured(runs), configured(runs)
    if configured is not rebel:
        # All pairs in each step, since which ones share a step depends on the number of ranks.
        config["data"]["init_args"]["batch_size"], whole["data"]["init_args"]["batch_size"] = 6, 12
    name = configured.__name__
    one = runs.fit(f"{name}_one", whole, steps=4)
    two = runs.fit(f"{name}_two", config, steps=4, strategy="ddp")
    for metric in ("train/loss", "train/fitted", "rollout/target_spread"):
        values = [[value for key, value in result.items() if metric in key] for result in (one, two)]
        assert values[0] or metric != "train/loss"
        torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("configured", CONFIGS)
def test_its_memory_is_counted(configured: Callable[[Runs], dict[str, Any]], runs: Runs, tmp_path: Path) -> None:
    config = configured(runs)
    rows = [{"prompt": chr(97 + n), "chosen": "1" * 30, "rejected": "2" * 30} for n in range(8)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    if configured is rebel:
        config["data"]["init_args"] |= {"prompts": path, "max_prompt_length": 1, "prompts_per_rollout": 4}
    else:
        config["data"]["init_args"] |= {"train": path, "max_length": 32, "batch_size": 4}
    if configured is hypo:
        # Long responses, and long prompts to respond to, in each micro-batch: what is counted.
        rows += [{"prompt": chr(105 + n) * 29, "chosen": "1", "rejected": "2"} for n in range(8)]
        config["data"]["init_args"] |= {"sampling": {"max_new_tokens": 2}, "batch_size": 8}
        write_rows(tmp_path / "rows.jsonl", rows)
    trainer = {**QUIET, "use_distributed_sampler": False, "max_steps": 2, "default_root_dir": str(tmp_path / "run")}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config | {"trainer": trainer}))
    measured, planned = measured_peak(str(file)), plan(["--config", str(file)]).peak
    assert planned == pytest.approx(measured, rel=0.1)
