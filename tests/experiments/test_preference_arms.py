"""Arms that learn from pairs of π_SFT's responses, and REBEL, through `dpr compare` at the smallest size."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.experiments import arm_configs
from dpr_lightning.experiments.arm_configs import ArmConfigs
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.experiments.recipes import Recipes
from tests.workspace import make_workspace

SHORT = {"data.init_args.batch_size": 16}
PAIRS = {"judge": "dense", "samples": 2, "limit": 6}
ARMS: dict[str, Any] = {
    "dpo": {"train": "toy/dpo.yaml", "pairs": PAIRS, "changes": SHORT},
    "ipo": {
        "train": "toy/dpo.yaml",
        "pairs": PAIRS,
        "changes": {**SHORT, "model.init_args.loss": "ipo", "trainer.max_steps": 1},
    },
    "hypo": {
        "train": "toy/hypo.yaml",
        "pairs": PAIRS,
        "changes": {**SHORT, "data.init_args.sampling": {"max_new_tokens": 4}, "trainer.max_steps": 1},
    },
    "rebel": {
        "train": "toy/rebel.yaml",
        "changes": {
            "data.init_args.sampling": {"max_new_tokens": 4},
            "data.init_args.prompts_per_rollout": 4,
            "data.init_args.refresh_every": 2,
            "trainer.max_steps": 2,
        },
    },
}


@pytest.mark.slow
def test_they_run_at_equal_cost_with_their_pairs(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    sizes = ["--demonstrations", "24", "--prompts", "24", "--development", "8", "--test", "4"]
    assert main(["toy", "--output", "toy", *sizes, "--hidden_size", "32", "--layers", "2"]) == 0
    config = {"arms": ARMS, "seeds": [1], "data": "toy", "output": "out", "samples": 1, **recipes}
    config |= {"sft_steps": 8, "dpr_steps": 3, "preview_samples": 0}
    Path("compare.yaml").write_text(yaml.safe_dump(config))
    assert main(["compare", "--config", "compare.yaml"]) == 0
    result = json.loads(Path("out/compare.json").read_text())
    assert set(result["arms"]) == {"sft", *ARMS}
    folder = Path("out/seed_1")
    (pairs,) = (folder / "pairs").glob("*.jsonl")  # of all three arms
    cost = json.loads(pairs.with_suffix(".json").read_text())["flops"]
    for name in ("dpo", "ipo", "hypo"):
        trained = yaml.safe_load((folder / "configs" / f"{name}.yaml").read_text())
        assert trained["data"]["init_args"]["train"] == str(pairs)
        steps, step = trained["trainer"]["max_steps"], json.loads((folder / "flops" / f"{name}.json").read_text())
        assert result["arms"][name]["teraflops"] == pytest.approx((steps * step["flops_of_a_step"] + cost) / 1e12)
        if name == "dpo":
            budget = 3 * json.loads((folder / "flops" / "budget.json").read_text())["flops_of_a_step"]
            assert steps == round((budget - cost) / step["flops_of_a_step"])


def test_pairs_come_off_the_budget_of_an_arm(
    recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm_configs, "flops_of_a_step", lambda _: 2e7)
    workspace = make_workspace(tmp_path)
    policies = tmp_path / "sft" / "policies"
    shutil.copytree(workspace.sft, policies / "final", dirs_exist_ok=True)
    shutil.copytree(workspace.reference, policies / "step_0000100")
    (policies / "references.json").write_text('{"step_0000100": 0.25, "final": 1.0}')
    (tmp_path / "data").mkdir()
    shutil.copy(workspace.prompts, tmp_path / "data" / "prompts.jsonl")
    dpr = yaml.safe_load(Path(recipes["dpr"]).read_text())
    dpr["data"]["init_args"]["sampling"]["max_new_tokens"] = 5
    (tmp_path / "dpr.yaml").write_text(yaml.safe_dump(dpr))
    named = Recipes("toy/sft.yaml", str(tmp_path / "dpr.yaml"), "runs/toy", dpr_steps=40)
    configs = ArmConfigs(tmp_path, 3, named, "key")
    arm = ArmSpec(train="toy/dpo.yaml", pairs=PairsSpec("dense", limit=8), extra_flops=1e8)
    config = yaml.safe_load(configs.arm("dpo", arm).read_text())
    (pairs,) = (tmp_path / "pairs").glob("*.jsonl")
    cost = json.loads(pairs.with_suffix(".json").read_text())["flops"]
    assert config["data"]["init_args"]["train"] == str(pairs)
    assert cost > 1e6
    assert config["trainer"]["max_steps"] == round((40 * 2e7 - 1e8 - cost) / 2e7) < 35
    assert configs.flops("dpo", arm) == config["trainer"]["max_steps"] * 2e7 + 1e8 + cost
    before = pairs.stat().st_mtime_ns
    assert configs.changed("other", arm)["data"]["init_args"]["train"] == str(pairs)
    assert pairs.stat().st_mtime_ns == before
    dear = ArmSpec(train="toy/dpo.yaml", pairs=arm.pairs, extra_flops=8e8)
    with pytest.raises(InputError, match="operations in its pairs and `extra_flops`"):
        configs.arm("dear", dear)


def test_pairs_of_an_arm_that_does_not_train() -> None:
    with pytest.raises(InputError, match="`pairs` are what a recipe learns from"):
        ArmSpec(pairs=PairsSpec())
