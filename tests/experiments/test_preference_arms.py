"""Arms that learn from pairs of π_SFT's responses, and REBEL, through `dpr compare` at the smallest size."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.experiments import run_folder, shared_trainings
from dpr_lightning.experiments.arm_configs import ArmConfigs
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.online_spec import OnlinePreferenceSpec
from dpr_lightning.experiments.pair_picks import PairsSpec
from dpr_lightning.experiments.recipes import Recipes, recipe_text
from tests.workspace import make_workspace


def codes(prompt: str, answer: str, metadata: Any) -> float:
    """A verifier that tells all answers apart."""
    return float(sum(map(ord, answer)))


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
    "online_preference": {
        "train": "toy/dpo.yaml",
        "pairs": PAIRS,
        "online_preference": {"by": "policy", "candidates": 3},
        "changes": {**SHORT, "trainer.max_steps": 1},
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
    files = {path for path in (folder / "pairs").glob("*.jsonl") if summary_of(str(path))["judge"] == "dense"}
    (pairs,) = files  # of all arms
    assert len(list((folder / "pairs").glob("*.jsonl"))) == 2
    cost = json.loads(pairs.with_suffix(".json").read_text())["flops"]
    for name in ("dpo", "ipo", "hypo"):
        trained = yaml.safe_load((folder / "configs" / f"{name}.yaml").read_text())
        assert trained["data"]["init_args"]["train"] == str(pairs)
        steps, step = trained["trainer"]["max_steps"], json.loads((folder / "flops" / f"{name}.json").read_text())
        assert result["arms"][name]["teraflops"] == pytest.approx((steps * step["flops_of_a_step"] + cost) / 1e12)
        if name == "dpo":
            budget = 3 * json.loads((folder / "flops" / "budget.json").read_text())["flops_of_a_step"]
            assert steps == round((budget - cost) / step["flops_of_a_step"])


@pytest.fixture
def configs(recipes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArmConfigs:
    """Of a seed whose π_SFT is there, and whose steps cost 2e7 operations each."""
    monkeypatch.setattr(shared_trainings, "flops_of_a_step", lambda _: 2e7)
    monkeypatch.setenv("WANDB_MODE", "disabled")
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
    return ArmConfigs(tmp_path, 3, named, {}, "key")


def test_pairs_come_off_the_budget_of_an_arm(configs: ArmConfigs, tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match="operations in its pairs, scorer and `extra_flops`"):
        configs.arm("dear", dear)


def write_recipe(name: str, folder: Path, steps: int) -> str:
    """A packaged recipe with fewer steps, and without runs of W&B."""
    config = yaml.safe_load(recipe_text(name))
    config["run"] = {"wandb": "off", "csv": False, "resume_every_n_steps": None}
    config["trainer"] |= {"max_steps": steps, "enable_progress_bar": False}
    config["data"]["init_args"]["batch_size"] = 16
    path = folder / Path(name).name
    path.write_text(yaml.safe_dump(config))
    return str(path)


def summary_of(pairs: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path(pairs).with_suffix(".json").read_text())
    return summary


@pytest.mark.parametrize("by", ["head", "policy", "oracle"])
def test_online_preferences_are_ranked_by_what_is_trained_on_the_same_pairs(
    by: Any, configs: ArmConfigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, dpo = write_recipe("toy/reward_model.yaml", tmp_path, 3), write_recipe("toy/dpo.yaml", tmp_path, 2)
    pairs = PairsSpec(f"verifier:{__name__}:codes", limit=8)
    options = {"head": head} if by == "head" else {}
    spec = OnlinePreferenceSpec(by, candidates=3, limit=6, **options)
    if by == "oracle":
        configs.recipes = replace(configs.recipes, verifier=f"{__name__}:codes")
    offline = ArmSpec(dpo, {"trainer.max_steps": 2}, pairs=pairs)
    online = replace(offline, pairs=None if by == "oracle" else pairs, online_preference=spec)
    before = yaml.safe_load(configs.arm("online", offline).read_text())
    after = yaml.safe_load(configs.arm("online", online).read_text())
    first, second = before["data"]["init_args"].pop("train"), after["data"]["init_args"].pop("train")
    assert after == before  # nothing differs but where the pairs come from
    summary = summary_of(second)
    assert (summary["samples"], summary["limit"], summary["pick"]) == (3, 6, "best_worst")
    kind, _, scorer = summary["judge"].partition(":")
    assert kind == ("verifier" if by == "oracle" else by)
    cost = summary["flops"]
    if by == "oracle":
        assert not (tmp_path / "scorers").exists()
    else:
        trained = yaml.safe_load((Path(scorer).parents[1] / "config.yaml").read_text())
        assert trained["data"]["init_args"]["train"] == first
        assert trained["trainer"]["max_steps"] == (3 if by == "head" else 2)
        cost += summary_of(first)["flops"] + 2e7 * (3 if by == "head" else 2)
    # Nothing is trained or labelled again, not for another arm with the same scorer either.
    monkeypatch.setattr(run_folder, "fit", lambda _: pytest.fail("trained again"))
    assert configs.flops("online", online) == pytest.approx(2 * 2e7 + cost)
    other = replace(online, online_preference=replace(spec, candidates=2))
    assert summary_of(configs.changed("other", other)["data"]["init_args"]["train"])["judge"] == summary["judge"]


def test_rounds_of_online_preferences_go_on_from_the_policy_before(configs: ArmConfigs, tmp_path: Path) -> None:
    configs.recipes = replace(configs.recipes, verifier=f"{__name__}:codes")
    spec = OnlinePreferenceSpec("oracle", candidates=3, rounds=2, limit=6)
    arm = ArmSpec(write_recipe("toy/dpo.yaml", tmp_path, 5), {"trainer.max_steps": 5}, online_preference=spec)
    last = yaml.safe_load(configs.arm("online", arm).read_text())
    (first,) = (yaml.safe_load(path.read_text()) for path in (tmp_path / "configs").glob("scorers.*.yaml"))
    sft = str(tmp_path / "sft" / "policies" / "final")
    assert first["model"]["init_args"]["policy"]["source"] == sft
    assert last["model"]["init_args"]["policy"]["source"] == f"{first['trainer']['default_root_dir']}/policies/final"
    assert last["data"]["init_args"]["opponent"] == sft
    assert (first["trainer"]["max_steps"], last["trainer"]["max_steps"]) == (2, 3)
    assert last["model"]["init_args"]["check_start"] is False
    pairs = [config["data"]["init_args"]["train"] for config in (first, last)]
    assert pairs[0] != pairs[1]
    assert configs.flops("online", arm) == pytest.approx(5 * 2e7 + sum(summary_of(path)["flops"] for path in pairs))
    # With a budget the last round takes what is left of it, and the one before is the same.
    equal_cost = replace(arm, changes={})
    assert configs.arm("online", equal_cost).is_file()
    assert configs.flops("online", equal_cost) == pytest.approx(configs.budget, rel=0.03)
    assert len(list((tmp_path / "configs").glob("scorers.*.yaml"))) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"by": "dense"}, "`online_preference.by` is 'dense'"),
        ({"candidates": 1}, "`online_preference.candidates` is 1"),
        ({"rounds": 0}, "`online_preference.rounds` is 0"),
        ({"by": "oracle", "head": "mine.yaml"}, "`by` is oracle"),
    ],
)
def test_wrong_online_preferences(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        OnlinePreferenceSpec(**options)


def test_online_preferences_need_their_pairs() -> None:
    with pytest.raises(InputError, match="is trained on `pairs`: add them"):
        ArmSpec("toy/dpo.yaml", online_preference=OnlinePreferenceSpec())
    with pytest.raises(InputError, match="leave `pairs` out"):
        ArmSpec("toy/dpo.yaml", pairs=PairsSpec(), online_preference=OnlinePreferenceSpec("oracle"))
    with pytest.raises(InputError, match="it takes `train`"):
        ArmSpec(online_preference=OnlinePreferenceSpec("oracle"))


def test_rounds_need_steps_to_divide(configs: ArmConfigs) -> None:
    spec = OnlinePreferenceSpec("oracle", rounds=3)
    arm = ArmSpec("toy/dpo.yaml", {"trainer.max_steps": 2}, online_preference=spec)
    with pytest.raises(InputError, match="rounds: 3`, and its recipe 2 steps to divide"):
        configs.arm("online", arm)


def test_pairs_of_an_arm_that_does_not_train() -> None:
    with pytest.raises(InputError, match="`pairs` are what a recipe learns from"):
        ArmSpec(pairs=PairsSpec())
