"""`dpr gap`: both scorers and all policies from one file of pairs, what is measured of them, and what is not redone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dpr_lightning.cli.main import main
from dpr_lightning.experiments import run_folder, shared_trainings
from dpr_lightning.experiments.held_out_pairs import best_scale, pair_fit
from dpr_lightning.experiments.recipes import recipe_text
from dpr_lightning.policies import load_tokenizer
from tests.workspace import Workspace, write_rows


def early(prompt: str, answer: str, metadata: Mapping[str, Any]) -> float:
    """A verifier that random answers satisfy now and then: the first character is of the first half of the alphabet."""
    return float(answer[:1] < "a")


VERIFIER = f"{__name__}:early"


def write_recipe(name: str, folder: Path, steps: int, lr: float) -> str:
    config = yaml.safe_load(recipe_text(name))
    config["run"] = {"csv": False, "resume_every_n_steps": None}
    config["trainer"] |= {"max_steps": steps, "enable_progress_bar": False}
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = lr
    path = folder / Path(name).name
    path.write_text(yaml.safe_dump(config))
    return str(path)


def log_ratio(policy: str, sft: str, prompt: str, response: str) -> float:
    """log π − log π_SFT of a response and its end, by transformers alone."""
    tokenizer = load_tokenizer(sft)
    start = tokenizer(prompt, add_special_tokens=False).input_ids
    answer = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    tokens, sums = torch.tensor([[*start, *answer]]), []
    for folder in (policy, sft):
        with torch.no_grad():
            logprob = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        sums.append(logprob.gather(1, tokens[0, 1:, None])[len(start) - 1 :].sum())
    return float(sums[0] - sums[1])


def test_one_file_of_pairs(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_trainings, "flops_of_a_step", lambda _: 2e7)
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"{a} + {b} =", "chosen": "1" * (1 + b), "rejected": "b" * (1 + a)}
        for a in range(4)
        for b in range(4)
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    recipes = [
        write_recipe("toy/dpo.yaml", tmp_path, 3, 3e-3),
        write_recipe("toy/reward_model.yaml", tmp_path, 3, 3e-3),
    ]
    command = ["gap", "--policy", workspace.sft, "--pairs", pairs, "--test", workspace.prompts, "--output", "out"]
    command += ["--dpo", recipes[0], "--head", recipes[1], "--verifier", VERIFIER, "--seeds", "[1]"]
    command += ["--candidates", "4", "--samples", "3", "--held_out", "0.25", "--max_new_tokens", "5"]
    assert main(command) == 0
    result = json.loads(Path("out/gap.json").read_text())
    saved = json.loads(Path("out/seed_1/results.json").read_text())
    online, offline = (np.array(saved["scores"][name]["sampled"]) for name in ("online_global", "offline"))
    assert result["gap"]["sampled"]["difference"] == pytest.approx((online - offline).mean())
    assert result["gap"] == result["paired"]["online_global - offline"]
    assert set(result["arms"]) == {"sft", "offline", "online_global", "online_local", "online_oracle"}
    # The policies differ in their pairs alone.
    configs = [yaml.safe_load(path.read_text()) for path in Path("out/seed_1/configs").glob("*.yaml")]
    policies = [config for config in configs if config["model"]["class_path"].endswith("SelfPlay")]
    assert len(policies) == 4
    trained_on = {config["data"]["init_args"].pop("train") for config in policies}
    local = next(config for config in policies if f"policy:{root_of(config)}/policies/final" in judges())
    folder = f"{root_of(local)}/policies/final"
    for config in policies:
        config["trainer"].pop("default_root_dir")
    assert len(trained_on) == 4
    assert all(config == policies[0] for config in policies)
    train, held_out = (read("out/data/train.jsonl"), read("out/data/held_out.jsonl"))
    assert len(train) == 12
    assert len(held_out) == 4
    assert result["pairs"]["offline"] == [12]
    assert all(1 <= count[0] <= 12 for count in result["pairs"].values())
    assert saved["flops"]["offline"] == 3 * 2e7
    labelled = sum(json.loads(path.read_text())["flops"] for path in Path("out/seed_1/pairs").glob("*.json"))
    assert sum(saved["flops"].values()) == pytest.approx(labelled + 6 * 3 * 2e7)
    # Scorers on the held-out pairs.
    gaps = [
        0.1
        * (
            log_ratio(folder, workspace.sft, row["prompt"], row["chosen"])
            - log_ratio(folder, workspace.sft, row["prompt"], row["rejected"])
        )
        for row in held_out
    ]
    assert result["scorers"]["local"] == pytest.approx(pair_fit(np.array(gaps)).to_dict(), abs=1e-5)
    assert result["scorers"]["oracle"]["accuracy"] == 1.0
    assert result["best_of"]["oracle"]["3"] >= result["best_of"]["global"]["3"]
    assert result["best_of"]["global"]["1"] == pytest.approx(result["arms"]["sft"]["sampled"])
    assert "gap = online_global − offline" in Path("out/report.html").read_text()
    monkeypatch.setattr(run_folder, "fit", lambda _: pytest.fail("trained again"))
    assert main(command) == 0


def root_of(config: dict[str, Any]) -> str:
    return str(config["trainer"]["default_root_dir"])


def judges() -> set[str]:
    return {json.loads(path.read_text())["judge"] for path in Path("out/seed_1/pairs").glob("*.json")}


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_how_well_scores_predict_labels() -> None:
    fit = pair_fit(np.array([0.0, 2.0, -1.0, 3.0]))
    assert fit.accuracy == 0.625
    assert fit.likelihood == pytest.approx(np.mean([-np.log1p(np.exp(-gap)) for gap in (0.0, 2.0, -1.0, 3.0)]))
    # Three of four labels right at equal differences: σ(scale) = 3/4.
    assert best_scale(np.array([1.0, 1.0, 1.0, -1.0])) == pytest.approx(np.log(3.0), abs=1e-3)
