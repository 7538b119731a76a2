"""What an experiment makes of the results of its arms and seeds, and how a training goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr_lightning.evaluation.statistics import hierarchical_comparison, paired_comparison
from dpr_lightning.experiments import experiment, run_folder, seed_run
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.experiment import Experiment, pooled, run_experiment
from dpr_lightning.experiments.predictions import Promise, predicted
from dpr_lightning.experiments.recipes import Recipes
from dpr_lightning.experiments.seed_results import Measured


def test_the_preview_is_held_to_what_was_reached() -> None:
    def seed(*scores: float) -> dict[str, Any]:
        return {"by_prompt": {"sampled": list(scores)}}

    results = {"sft": [seed(0.0, 1.0), seed(0.5, 0.5)], "up": [seed(1.0, 1.0), seed(0.5, 1.0)],
               "down": [seed(0.0, 0.5), seed(0.0, 0.0)]}  # fmt: skip
    promised = [
        {"up": Promise(0.8, 0.5, True), "down": Promise(0.4, 0.5, True)},
        {"up": Promise(0.7, 0.5, True), "down": Promise(0.9, 0.5, False)},
    ]
    result = predicted(results, promised)
    assert [round(run["reached"], 6) for run in result["runs"]["down"]] == [-0.25, -0.5]
    assert result["reliable"] == {"runs": 3, "rank_correlation": pytest.approx(1.0), "same_sign": 1.0}
    assert result["all"]["same_sign"] == 0.75
    assert result["all"]["rank_correlation"] == pytest.approx(-0.2)
    assert predicted({"sft": []}, [])["all"]["rank_correlation"] is None


def test_differences_are_paired_pooled_and_corrected_for_the_number_of_arms() -> None:
    generator = np.random.default_rng(0)

    def seeds(gain: float) -> list[dict[str, Any]]:
        draw = generator.random((3, 50))
        return [{"by_prompt": {"sampled": row + gain, "greedy": row}} for row in draw]

    results = {"sft": seeds(0.0), "up": seeds(0.5), "same": seeds(0.0)}
    table = pooled(results, "sft")
    pairs = [
        (up["by_prompt"]["sampled"], sft["by_prompt"]["sampled"])
        for up, sft in zip(results["up"], results["sft"], strict=True)
    ]
    expected = hierarchical_comparison(pairs)
    up, same = table["up - sft"]["sampled"], table["same - sft"]["sampled"]
    assert up["difference"] == expected.difference
    assert (up["low"], up["high"]) == (expected.low, expected.high)
    assert up["p_holm"] == pytest.approx(2 * up["p_value"])
    assert same["p_holm"] == pytest.approx(same["p_value"])
    assert (up["verdict"], same["verdict"]) == ("better", "no detectable difference")
    one = pooled({name: runs[:1] for name, runs in results.items()}, "sft")
    assert one["up - sft"]["sampled"]["low"] == paired_comparison(*pairs[0]).low


def test_a_training_that_was_cut_short_keeps_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = tmp_path / "arm.yaml", tmp_path / "arm"
    config.write_text("trainer: {max_steps: 3}\n")
    result: list[list[str]] = []

    def cut_short(_: Path) -> None:
        result.append(sorted(path.name for path in folder.iterdir()))
        (folder / "checkpoints").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "fit", cut_short)
    run = object.__new__(seed_run.SeedRun)
    for before in ("one policy", "one policy", "another"):
        with pytest.raises(KeyboardInterrupt):
            run._train(config, folder, before)
    assert result == [["begun.json"], ["begun.json", "checkpoints"], ["begun.json"]]


def test_an_experiment_calls_no_arm_a_gain_that_a_longer_sft_exceeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)

    def scored(mean: float) -> dict[str, Any]:
        scores = (generator.random(200) < mean).astype(float).tolist()
        return {"greedy": mean, "sampled": mean, "length": 9.0, "reverse_kl": 0.0,
                "by_prompt": {"greedy": scores, "sampled": scores}}  # fmt: skip

    arms = {"sft_doubled": ArmSpec("sft", steps_multiple=2), "dpr": ArmSpec("dpr")}
    shares = {"sft": 0.3, "sft_doubled": 0.9, "dpr": 0.6}
    measured = {
        seed: Measured({name: scored(share) for name, share in shares.items()}, {}, dict.fromkeys(shares, 0.0))
        for seed in (1, 2)
    }
    monkeypatch.setattr(experiment, "measured_elsewhere", lambda *_: measured)
    settings = Experiment(
        "Short SFT", tmp_path, arms, [1, 2], Recipes("toy/sft.yaml", "toy/dpr.yaml", "runs/toy"),
        prepare=lambda *_: None, commands=[], samples=1,
    )  # fmt: skip
    outcome = run_experiment(settings)
    assert [line.partition(":")[0] for line in outcome.verdict.splitlines()] == [
        *("Finishing SFT gives more than any arm", "Sampled answers, better than SFT"),
        "Sampled answers, no gain beyond a finished SFT",
        *("Finishing SFT gives more than any arm", "Greedy answers, better than SFT"),
        "Greedy answers, no gain beyond a finished SFT",
    ]
    assert outcome.paired["dpr - sft"]["greedy"]["verdict"] == "better"
    assert "Start from a finished SFT." in outcome.report.read_text()
