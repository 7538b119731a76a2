"""A comparison on a toy small enough to train in seconds: what it finds, what it keeps, what it refuses."""

import json
import runpy
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.experiments import arm_configs, run_folder, seed_run

ARMS: dict[str, Any] = {
    "reference": {"policy": "step_0000002"},
    "cool": {"temperature": 0.5},
    "optimum": {"optimum": {"beta": 0.5, "reward": {"form": {"one_sided": 1.0, "log_policy": 0.5}}}},
    "extrapolated": {"extrapolate": 0.5, "references": ["step_0000004"]},
    "continued": {"train": "continued_sft"},
    "guided": {"best_of": {"candidates": 2, "chunk": 8}},
    "oracle": {
        "train": "dpr",
        "changes": {
            "model.init_args.credit.dense_weight": 0.0,
            "data.init_args.verifier": "dpr_lightning.evaluation.verifiers.answer",
        },
    },
    "dpr": {"train": "dpr", "changes": {"data.init_args.reward": {"form": "log_ratio"}}},
}


PACKAGED = files("dpr_lightning.configs").joinpath("toy", "dpr.yaml").read_text()
TRAINED = {"continued", "oracle", "dpr"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("toy")
    sizes = ["--demonstrations", "40", "--prompts", "64", "--development", "8", "--test", "12"]
    assert main(["toy", "--output", str(folder), *sizes, "--hidden_size", "32", "--layers", "2"]) == 0
    return str(folder)


@pytest.fixture
def configured(tmp_path: Path, data: str, recipes: dict[str, str]) -> Callable[..., list[str]]:
    def write(**options: Any) -> list[str]:
        options_of_run = {"data": data, "output": str(tmp_path / "out"), "arms": ARMS, "seeds": [1, 2]}
        options_of_run |= {
            **recipes,
            "samples": 2,
            "sft_steps": 8,
            "dpr_steps": 1,
            "preview_samples": 4,
            "preview_prompts": 4,
        }
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump(options_of_run | options))
        return ["compare", "--config", str(path)]

    return write


def configured_data(folder: Path) -> str:
    """The data that the config in ``folder`` names."""
    return str(yaml.safe_load((folder / "compare.yaml").read_text())["data"])


def _cost(seed: Path, config: str) -> float:
    """Operations of one optimizer step, as the comparison counted them."""
    return float(json.loads((seed / "flops" / f"{config}.json").read_text())["flops_of_a_step"])


@pytest.mark.slow
def test_arms_over_seeds_are_made_once(
    configured: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(configured()) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(result["arms"]) == {"sft", *ARMS}
    assert set(result["paired"]) == {f"{name} - sft" for name in ARMS}
    assert "Sampled answers, no detectable difference: " in (tmp_path / "out" / "report.html").read_text()
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in tmp_path.rglob("media/table/*.json")}
    assert [row[0] for row in tables["arms"]["data"]] == list(result["arms"])
    assert len(tables["paired"]["data"]) == sum(map(len, result["paired"].values()))
    seed = tmp_path / "out" / "seed_1"
    results = {path.stem: json.loads(path.read_text()) for path in (seed / "results").iterdir()}
    assert results["reference"]["reverse_kl"] != results["sft"]["reverse_kl"]
    assert len(results["dpr"]["by_prompt"]["sampled"]) == 12
    # What the preview said beforehand; of the oracle it knows nothing.
    assert set(result["preview"]["runs"]) == {"dpr"}
    assert [set(run) for run in result["preview"]["runs"]["dpr"]] == [{"promised", "reached", "reliable"}] * 2
    # An answer that was picked has no greedy twin.
    assert set(results["guided"]["by_prompt"]) == {"sampled"}
    assert result["arms"]["guided"]["greedy"] is None
    assert set(result["paired"]["guided - sft"]) == {"sampled"}
    # The page: every arm's answers to the prompts of the test, in the order of the file.
    page = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = [json.loads(line) for line in (seed / "data" / "test.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in page["samples"]] == [row["prompt"] for row in rows]
    assert {answer["policy"] for answer in page["samples"][0]["answers"]} == {"sft", *ARMS}
    texts = {
        name: [answer["text"] for sample in page["samples"] for answer in sample["answers"] if answer["policy"] == name]
        for name in ("sft", "cool")
    }
    assert texts["sft"] != texts["cool"]
    titles = [scatter["title"] for scatter in page["scatters"]]
    assert titles[0] == "Reward and length: answers of SFT"
    assert titles[-2:] == ["Reward and truth: policies", "Preview and result"]
    assert next(iter(page["panels"])) == "Supervised fine-tuning"
    # Training is counted, once.
    flops = {name: arm["teraflops"] for name, arm in result["arms"].items()}
    assert {name for name, count in flops.items() if count == 0} == set(ARMS) - TRAINED | {"sft"}
    # Every training takes the steps that come nearest to what DPR costs, and no fewer than one.
    budget = _cost(seed, "budget")
    for name in TRAINED:
        steps = yaml.safe_load((seed / "configs" / f"{name}.yaml").read_text())["trainer"]["max_steps"]
        assert flops[name] * 1e12 == pytest.approx(steps * _cost(seed, name))
        assert steps == max(1, round(budget / _cost(seed, name)))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    saved = {path: path.stat().st_mtime_ns for path in seed.rglob("results/*.json")}
    fitted: list[str] = []
    inner = run_folder.fit

    def fit(config: Path) -> None:
        fitted.append(config.stem)
        inner(config)

    monkeypatch.setattr(run_folder, "fit", refuse)
    monkeypatch.setattr(seed_run, "evaluate_arm", refuse)
    monkeypatch.setattr(arm_configs, "flops_of_a_step", refuse)
    monkeypatch.setattr(seed_run, "preview_arms", refuse)
    assert main(configured()) == 0
    # What docs/results.md and the README are made with.
    scripts = Path(__file__).parents[2] / "benchmarks"
    table = runpy.run_path(str(scripts / "compare_table.py"))["main"]
    table(str(tmp_path / "out" / "compare.json"), str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "| dpr |" in printed
    ours, sft = (result["arms"][name]["sampled"] for name in ("dpr", "sft"))
    assert f"| sft | {ours - sft:+.3f} [" in printed.partition("| dpr − |")[2]
    figure = runpy.run_path(str(scripts / "figure.py"))["main"]
    figure(str(tmp_path / "figure.svg"), f"A & B={tmp_path}/out/compare.json")
    sampled = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert "A & B" in {part.text for part in sampled}
    # Seeds measured apart are one comparison: here both came from elsewhere, and nothing is made.
    pooled, moved = tmp_path / "pooled", tmp_path / "moved"
    shutil.copytree(configured_data(tmp_path), moved)
    assert main(configured(output=str(pooled), pool=[str(tmp_path / "out")], data=str(moved))) == 0
    again = json.loads((pooled / "compare.json").read_text())
    assert again == result
    assert "no detectable difference" in (pooled / "report.html").read_text()
    assert sorted(path.name for path in pooled.glob("seed_*")) == []
    # The page is written again from report.json.
    page_now = (tmp_path / "out" / "report.html").read_text()
    assert main(["report", "--run", str(tmp_path / "out"), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page_now
    # The command on the page asks the same again.
    assert main(page["commands"][0].split()[1:]) == 0
    monkeypatch.undo()
    monkeypatch.setattr(run_folder, "fit", fit)
    # A training that was cut short begins again; a new arm is added; nothing else is touched.
    (seed / "dpr" / "done.json").unlink()
    (seed / "results" / "dpr.json").unlink()
    more = ARMS | {"dpr_beta": {"train": "dpr", "changes": {"model.init_args.kl.coefficient": 1.0}}}
    assert main(configured(arms=more)) == 0
    assert fitted == ["dpr", "dpr_beta", "dpr_beta"]
    again = {path: path.stat().st_mtime_ns for path in saved}
    assert {path.stem for path in saved if saved[path] != again[path]} == {"dpr"}


def test_seeds_of_another_comparison_are_not_pooled(
    configured: Callable[..., list[str]], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"cool": {"temperature": 0.5}}
    there = tmp_path / "out"
    assert main(configured(arms=few, seeds=[1])) == 0

    def refused(**options: Any) -> str:
        here = {"arms": few, "seeds": [1, 2], "output": str(tmp_path / "here"), "pool": [str(there)]}
        capsys.readouterr()
        assert main(configured(**(here | options))) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "the arms cool differ" in refused(arms={"cool": {"temperature": 0.25}})
    assert "`samples` was 2 and is 3" in refused(samples=3)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    with (other / "data" / "test.jsonl").open("a") as rows:
        rows.write((other / "data" / "test.jsonl").read_text().splitlines()[0] + "\n")
    assert "`data` was" in refused(data=str(other))  # what is in it, and not where it lies
    assert "in the pool twice" in refused(pool=[str(there), str(there)])
    assert "no seed_N.json" in refused(pool=[str(tmp_path)])
    file = there / "seed_1.json"
    file.write_text(file.read_text()[:-100])
    assert "run that seed again" in refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1, 1]}, "each of them once"),
        ({"arms": {"a b": {}}}, "named like variables"),
        ({"arms": {"x": {"policy": "sft", "changes": {"trainer.max_steps": 1}}}}, "they take `train`"),
        ({"arms": {"x": {"policy": "step_0000002", "train": "dpr"}}}, "leave `policy` out"),
        ({"arms": {"x": {"optimum": {"beta": 1.0}, "best_of": {"candidates": 2}}}}, "not both"),
        ({"arms": {"x": {"extrapolate": 1.0, "references": ["a", "b"]}}}, "away from one reference"),
        ({"arms": {"x": {"polycy": "sft"}}}, "polycy"),
        ({"arms": {"sft": {"temperature": 0.5}}}, "give this arm another name"),
        ({"arms": {"x": {"references": ["step_0000002"]}}}, "only for `train`, `optimum`"),
        ({"arms": {"x": {"train": "dpr", "references": []}}}, "`references` is []"),
        ({"arms": {"data": {"temperature": 0.5}}}, "Arm 'data' has the name of a folder of each seed"),
        ({"arms": {"x": {"train": "dpr", "extra_flops": -1.0}}}, "`extra_flops` is -1.0"),
        ({"arms": {"x": {"steps_multiple": 2}}}, "`steps_multiple` multiplies the steps of the recipe"),
        ({"arms": {"x": {"train": "sft", "steps_multiple": 0}}}, "`steps_multiple` is 0: it is a number above 0"),
        (
            {"arms": {"x": {"train": "sft", "steps_multiple": 2, "changes": {"trainer.max_steps": 9}}}},
            "`changes` without 'trainer.max_steps'",
        ),
        ({"arms": {"x": {"train": "mine.yaml"}}}, "no config 'mine.yaml'"),
        ({"focus": "dpr", "arms": {"x": {}}}, "`focus` is 'dpr', and the arms are x"),
        ({"samples": 0}, "at least 1 a prompt"),
        ({"sft": "toy/nope.yaml"}, "no config 'toy/nope.yaml'"),
        ({"data": "/nowhere"}, "has no base/"),
    ],
)
def test_bad_comparisons(
    options: dict[str, Any], message: str, configured: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(configured(**options)) == 2
    assert message in capsys.readouterr().err


def test_what_only_the_run_can_refuse(configured: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    less = {"seeds": [1], "sft_steps": 4}
    assert main(configured(**less, arms={"x": {"policy": "step_0000009"}})) == 2
    assert "has no checkpoint 'step_0000009'; its checkpoints are final, step_0000001" in capsys.readouterr().err
    assert main(configured(**less, arms={"x": {"train": "dpr", "changes": {"modell.lr": 1}}})) == 2
    assert "Arm 'x' changes 'modell.lr', and its config has no options in 'modell'" in capsys.readouterr().err
    assert main(configured(**less, arms={"x": {"train": "dpr", "changes": {"trainer.callbacks.x": 1}}})) == 2
    assert "no options in 'callbacks'" in capsys.readouterr().err
    assert main(configured(**less, arms={"x": {"train": "dpr", "references": ["nope"]}})) == 2
    assert "has no checkpoint 'nope'" in capsys.readouterr().err
    assert main(configured(**less, arms={"x": {"train": "toy/sft.yaml", "references": ["final"]}})) == 2
    assert "Arm 'x' names `references`, and its recipe has none" in capsys.readouterr().err
    source = {"model.init_args.policy.source": "runs/other/sft/policies/final"}
    assert main(configured(**less, arms={"x": {"train": "dpr", "changes": source}})) == 2
    assert "starts from runs/other/sft/policies/final, which is no policy of this experiment" in capsys.readouterr().err
    assert main(configured(**less, arms={"x": {"train": "dpr", "extra_flops": 1e18}})) == 2
    assert "has 1e+18 `extra_flops`, and the budget" in capsys.readouterr().err
    assert main(configured(**less, arms={}, data=None)) == 2
    assert "was prepared with" in capsys.readouterr().err


def test_other_data_or_references_are_noticed(
    configured: Callable[..., list[str]], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    changed_config = tmp_path / "own_dpr.yaml"
    changed_config.write_text(PACKAGED)
    options: dict[str, Any] = {"seeds": [1], "arms": {"x": {"optimum": {"beta": 1.0}}}, "data": str(copy)}
    assert main(configured(dpr=str(changed_config), **options)) == 0
    result = tmp_path / "out" / "seed_1" / "results" / "x.json"
    first = json.loads(result.read_text())
    changed_config.write_text(PACKAGED.replace("step_0000100", "step_0000006"))
    assert main(configured(dpr=str(changed_config), **options)) == 0
    second = json.loads(result.read_text())
    assert second["key"] != first["key"]
    assert second["reverse_kl"] < first["reverse_kl"]
    test = copy / "data" / "test.jsonl"
    test.write_text("".join(test.read_text().splitlines(keepends=True)[:5]))
    assert main(configured(**options)) == 2
    assert "was prepared with" in capsys.readouterr().err


def test_one_prompt_is_too_few(
    configured: Callable[..., list[str]], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    test = copy / "data" / "test.jsonl"
    test.write_text(test.read_text().splitlines()[0] + "\n")
    assert main(configured(data=str(copy))) == 2
    assert "at least two prompts" in capsys.readouterr().err


def test_imitation_keeps_to_the_budget_and_any_folder_will_do(
    configured: Callable[..., list[str]], tmp_path: Path
) -> None:
    arms = {
        "wide": {"train": "continued_sft", "changes": {"data.init_args.batch_size": 8}},
        "dpr": {"train": "dpr"},
        "cold": {"temperature": 0.0},
        "sft_doubled": {"train": "sft", "steps_multiple": 2},
    }
    output = tmp_path / "a folder: rünne #1"
    assert main(configured(output=str(output), seeds=[1], arms=arms)) == 0
    config = yaml.safe_load((output / "seed_1" / "configs" / "wide.yaml").read_text())
    steps, wide = config["trainer"]["max_steps"], _cost(output / "seed_1", "wide")
    assert steps > 1
    assert abs(steps * wide - _cost(output / "seed_1", "budget")) <= wide / 2
    assert (output / "seed_1" / "dpr" / "policies" / "final").is_dir()
    # More steps of SFT cost what they cost, and are those of SFT with nothing else changed.
    once, twice = (
        yaml.safe_load((output / "seed_1" / "configs" / f"{name}.yaml").read_text()) for name in ("sft", "sft_doubled")
    )
    assert (once["trainer"].pop("max_steps"), twice["trainer"].pop("max_steps")) == (8, 16)
    assert twice["trainer"].pop("default_root_dir") == once["trainer"].pop("default_root_dir") + "_doubled"
    assert twice["run"].pop("references") == []
    assert twice == once
    assert once["model"]["init_args"]["policy"]["source"] == str(output / "seed_1" / "base")
    saved = {path.name for path in (output / "seed_1" / "sft_doubled" / "policies").iterdir() if path.is_dir()}
    assert saved == {"final"}
    flops = {name: arm["teraflops"] for name, arm in json.loads((output / "compare.json").read_text())["arms"].items()}
    assert flops["sft_doubled"] * 1e12 == pytest.approx(16 * _cost(output / "seed_1", "sft_doubled"))
    assert flops["sft_doubled"] > flops["dpr"]
    assert "NaN" not in (output / "compare.json").read_text()
