"""What docs/write_your_own.md shows trains through `dpr fit`, and is the file beside this test."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpr_lightning.cli.main import main
from dpr_lightning.cli.plan_command import plan
from dpr_lightning.engine import sampled_logits
from dpr_lightning.errors import InputError
from dpr_lightning.experiments import flops
from dpr_lightning.modules import ScoredPart
from dpr_lightning.modules.rollout_algorithm import score_logits
from dpr_lightning.types import RolloutBatch
from tests.gates.cases import STOPPED, Runs
from tests.gates.record import HASH
from tests.live_peak import measured_peak
from tests.plugins.reinforce_entropy import IdentityPreference, ReinforceEntropy, brevity
from tests.training import QUIET
from tests.workspace import write_rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write_your_own.md").read_text(encoding="utf-8")
SOURCE = (Path(__file__).parent / "reinforce_entropy.py").read_text(encoding="utf-8")
OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("plugins"))


def snippet(index: int) -> dict[str, Any]:
    """A config of the page."""
    config: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[index])
    return config


def rollout_config(runs: Runs) -> dict[str, Any]:
    """The page's, with paths that exist and small sizes."""
    config, inputs = snippet(0), runs.inputs
    config["model"]["init_args"] |= {"policy": {"source": str(inputs / "policy")}, "optimizer": OPTIMIZER}
    config["data"]["init_args"] |= {
        "prompts": str(inputs / "rows.jsonl"),
        "sft": str(inputs / "policy"),
        "references": [str(inputs / "reference")],
        "sampling": {"max_new_tokens": 8},
        "samples_per_prompt": 2,
        "prompts_per_rollout": 6,
    }
    return config


def test_the_page_shows_the_file() -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        assert block.strip() in SOURCE
    for part in SOURCE.split("\n\n\n")[1:]:
        assert part.strip() in PAGE


def pairs_config(runs: Runs) -> dict[str, Any]:
    """The page's, with paths that exist and small sizes."""
    config, inputs = snippet(1), runs.inputs
    config["model"]["init_args"] |= {"policy": {"source": str(inputs / "policy")}, "optimizer": OPTIMIZER}
    config["data"]["init_args"] |= {
        "train": str(inputs / "rows.jsonl"),
        "validation": None,
        "opponent": str(inputs / "policy"),
        "cache_dir": str(runs.folder / "cache"),
        "batch_size": 3,
        "sampling": {"max_new_tokens": 8},
    }
    return config


@pytest.mark.parametrize("configured", [rollout_config, pairs_config])
def test_it_trains_and_goes_on_to_the_bit(configured: Callable[[Runs], dict[str, Any]], runs: Runs) -> None:
    config, name = configured(runs), configured.__name__
    whole = runs.fit(f"{name}_whole", config, steps=4, accumulate=2)
    stop = {"class_path": "tests.reliability.runs.Preemption", "init_args": {"at": 2}}
    runs.fit(f"{name}_stopped", config, steps=4, accumulate=2, extra=[stop], code=STOPPED)
    assert runs.fit(f"{name}_stopped", config, steps=4, accumulate=2) == whole
    assert f"weights: {HASH}" in whole


def test_two_ranks_learn_the_same(runs: Runs) -> None:
    rollouts, pairs = rollout_config(runs), pairs_config(runs)
    # All pairs in each step, since which ones share a step depends on the number of ranks.
    few = runs.folder / "few.jsonl"
    few.write_text("".join((runs.inputs / "rows.jsonl").read_text().splitlines(keepends=True)[:6]))
    pairs["data"]["init_args"]["train"] = str(few)
    for name, config, batch_size in (("rollouts", rollouts, None), ("pairs", pairs, 6)):
        whole = copy.deepcopy(config)
        if batch_size is not None:
            whole["data"]["init_args"]["batch_size"] = batch_size
        one, two = runs.fit(f"{name}_1", whole, steps=3), runs.fit(f"{name}_2", config, steps=3, strategy="ddp")
        losses = [[value for key, value in values.items() if "train/loss" in key] for values in (one, two)]
        assert losses[0]
        assert torch.tensor(losses[0]).sub(torch.tensor(losses[1])).abs().max() < 1e-5


def test_pairs_learn_the_margin(runs: Runs) -> None:
    config = pairs_config(runs)
    values = runs.fit("pairs", config, steps=2)
    (first, then), *_ = (value for key, value in values.items() if "train/loss" in key)
    # The policy starts as its opponent, so that both responses score 0.
    assert first == (0, pytest.approx(config["model"]["init_args"]["margin"] ** 2, rel=1e-4))
    assert then[1] < first[1]


@pytest.mark.slow
def test_they_are_arms_of_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flops, "STEPS", 3)
    sizes = ["--demonstrations", "40", "--prompts", "64", "--development", "8", "--test", "6"]
    assert main(["toy", "--output", "mine", *sizes, "--hidden_size", "32", "--layers", "2"]) == 0
    short = {"data.init_args.sampling": {"max_new_tokens": 8}}
    for index, name in enumerate(("reinforce_entropy", "identity_preference")):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(snippet(index) | {"run": {"wandb": None}}))
    config = snippet(2) | {"data": "mine", "seeds": [1], "samples": 1, "sft_steps": 8, "dpr_steps": 1}
    config |= {"preview_samples": 2, "preview_prompts": 2}
    for name, arm in config["arms"].items():
        rows = {"data.init_args.batch_size": 3} if "preference" in name else {"data.init_args.prompts_per_rollout": 6}
        arm["changes"] = arm.get("changes", {}) | short | rows
    Path("compare.yaml").write_text(yaml.safe_dump(config))
    assert main(["compare", "--config", "compare.yaml"]) == 0
    result = json.loads(Path("runs/compare/mine/compare.json").read_text())
    assert set(result["arms"]) == {"sft", *config["arms"]}
    folder = Path("runs/compare/mine/seed_1")
    sft = load_file(folder / "sft" / "policies" / "final" / "model.safetensors")
    for name, arm in config["arms"].items():
        trained = load_file(folder / name / "policies" / "final" / "model.safetensors")
        assert any((trained[key] != weight).any() for key, weight in sft.items())
        assert result["arms"][name]["teraflops"] > 0
        steps = yaml.safe_load((folder / "configs" / f"{name}.yaml").read_text())["trainer"]["max_steps"]
        cost = json.loads((folder / "flops" / f"{name}.json").read_text())["flops_of_a_step"]
        assert result["arms"][name]["teraflops"] == pytest.approx(steps * cost / 1e12)
        assert (name in result["preview"]["runs"]) == (arm["train"] == "dpr")


def test_the_baseline_is_the_mean_return_of_the_batch() -> None:
    mask = torch.tensor([[False, True, True], [False, True, False]])
    reward, zero, rows = torch.tensor([[1.0, 2.0], [5.0, 9.0]]), torch.zeros(2, 2), torch.arange(2)
    count, outcome = torch.tensor(3.0), torch.tensor([brevity("", "", {}), 0.0])
    rollout = RolloutBatch(mask.long(), mask, rows > 0, rows, zero, zero, zero, reward, zero, count, outcome)
    credited = ReinforceEntropy.credit(object.__new__(ReinforceEntropy), rollout)
    torch.testing.assert_close(credited.advantage, torch.tensor([[-0.5, -0.5], [0.5, 0.0]]))


class WholeLogits(ReinforceEntropy):
    """Computes the logits of a micro-batch itself."""

    def score(self, part: RolloutBatch) -> ScoredPart:
        """A copy of all logits, in float64."""
        actions = sampled_logits(self.policy, part.tokens, part.mask)
        return score_logits(actions._replace(logits=actions.logits.double()))


def test_their_memory_is_counted_by_their_step(runs: Runs, tmp_path: Path) -> None:
    """A rollout algorithm, one with its own ``score``, and a loss for pairs: no line of the package is for them."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": chr(97 + n), "completion": "1" * 30} for n in range(8)])
    trainer = {**QUIET, "use_distributed_sampler": False, "max_steps": 2, "default_root_dir": str(tmp_path)}
    peaks = {}
    for kind in (ReinforceEntropy, WholeLogits, IdentityPreference):
        rollouts = kind is not IdentityPreference
        config = rollout_config(runs) if rollouts else pairs_config(runs)
        config["model"]["class_path"] = f"{kind.__module__}.{kind.__name__}"
        sizes = {"max_prompt_length": 1} if rollouts else {"max_length": 32, "batch_size": 4}
        config["data"]["init_args"] |= {"prompts" if rollouts else "train": rows, **sizes}
        config["data"]["init_args"]["sampling"] = {"max_new_tokens": 8 if rollouts else 2}
        path = tmp_path / f"{kind.__name__}.yaml"
        path.write_text(yaml.safe_dump(config | {"trainer": trainer}))
        measured, planned = measured_peak(str(path)), plan(["--config", str(path)]).peak
        assert planned == pytest.approx(measured, rel=0.1), kind
        peaks[kind] = planned
    assert peaks[WholeLogits] > peaks[ReinforceEntropy]


def test_a_step_that_depends_on_numbers_is_refused(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(_: ReinforceEntropy, scored: ScoredPart, part: RolloutBatch) -> torch.Tensor:
        total = scored.logprob.sum() / part.num_tokens
        return total if bool(total > 0) else -total

    monkeypatch.setattr(ReinforceEntropy, "loss", loss)
    config = rollout_config(runs) | {"trainer": {"accelerator": "cpu", "devices": 1}}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"this model or module.*max_steps 2"):
        plan(["--config", str(tmp_path / "config")])
