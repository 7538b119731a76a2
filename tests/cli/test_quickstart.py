"""`dpr quickstart` at smoke size: what it leaves, and what its page says."""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from dpr_lightning.cli import quickstart_command
from dpr_lightning.cli.main import main
from dpr_lightning.cli.quickstart_command import MARKER
from dpr_lightning.cli.toy_command import toy
from dpr_lightning.evaluation.statistics import holm
from dpr_lightning.experiments import background, experiment, flops
from dpr_lightning.experiments.background import Begin, Work
from dpr_lightning.experiments.experiment import BACKGROUND_LOG
from dpr_lightning.experiments.run_folder import fresh_folder

MARKS = {"better": "▲", "no detectable difference": "≈", "worse": "▼"}


@pytest.fixture(scope="session")
def quickstart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "STEPS", 3)
        patch.setattr(experiment, "run_in_background", as_in_a_process)
        run_quickstart(folder)
    return folder


def run_quickstart(folder: Path) -> None:
    sizes = ["--demonstrations", "64", "--test", "12", "--samples", "2", "--preview_prompts", "4"]
    steps = ["--preview_samples", "4", "--sft_steps", "8", "--dpr_steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        # Every training validates on the development rows, and reads the prompts of all rollouts.
        patch.setattr(quickstart_command, "toy", partial(toy, prompts=64, development=12))
        assert main(["quickstart", "--output", str(folder), *sizes, *steps]) == 0


@contextmanager
def as_in_a_process(log: Path, *, allowed: bool) -> Iterator[Begin]:
    """Calls get copies of their arguments and return copies of their results, but import nothing again."""
    assert allowed

    def begin(function: Callable[..., Any], *arguments: Any) -> Work:
        call = pickle.dumps(partial(function, *arguments))
        return Work(lambda: pickle.loads(pickle.dumps(pickle.loads(call)())), lambda: False)

    yield begin


@pytest.mark.slow
def test_quickstart_runs_its_controls_in_a_process(
    quickstart_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "spare_cores", lambda: 64)
    run_quickstart(tmp_path / "run")
    assert "seed 0 · " in (tmp_path / "run" / BACKGROUND_LOG).read_text()
    folders = (tmp_path / "run", quickstart_folder)
    ours, theirs = (json.loads((folder / "metrics.json").read_text())["arms"] for folder in folders)
    assert set(ours) == set(theirs)
    # A step's operations are counted over more steps in the process, and with them the length of arms of equal compute.
    for name in ("sft", "reference", "sft_low_temperature", "contrast", "dpr"):
        assert ours[name] | {"teraflops": 0} == theirs[name] | {"teraflops": 0}


def test_quickstart_leaves_what_it_promises(quickstart_folder: Path) -> None:
    metrics = json.loads((quickstart_folder / "metrics.json").read_text())
    arms = {"sft", "reference", "continued_sft", "sft_low_temperature", "contrast", "dpr"}
    arms |= {"trimmed", "cleaned", "cleaned_random", "cleaned_small_loss", "cleaned_oracle"}
    assert set(metrics["arms"]) == arms
    for arm in metrics["arms"].values():
        assert {"greedy", "sampled", "length", "reverse_kl"} <= set(arm)
    assert {f"{arm} - sft" for arm in arms - {"sft"}} <= set(metrics["paired"])
    assert {"difference", "low", "high"} <= set(metrics["paired"]["dpr - sft"]["sampled"])
    assert {"difference", "low", "high"} <= set(metrics["paired"]["dpr - sft"]["greedy"])
    # One verdict, corrected over all comparisons of a measure, in numbers, words and on the page.
    entries = [entry for by_measure in metrics["paired"].values() for entry in by_measure.values()]
    for measure in ("sampled", "greedy"):
        family = [by_measure[measure] for by_measure in metrics["paired"].values()]
        assert len(family) == 19  # ten with SFT, nine more with DPR
        assert [entry["p_holm"] for entry in family] == holm([entry["p_value"] for entry in family]).tolist()
    page = (quickstart_folder / "report.html").read_text()
    assert sorted(re.findall(r'<b class="\w+">(.)', page)) == sorted(MARKS[entry["verdict"]] for entry in entries)
    assert metrics["verdict"].splitlines()[0] in page
    assert (
        sum(line.count("(") for line in metrics["verdict"].splitlines()) == 40
    )  # of SFT and of DPR: ten others, two measures
    assert abs(metrics["arms"]["sft"]["reverse_kl"]) < 1e-3
    assert (quickstart_folder / "report.html").stat().st_size > 20_000
    assert list((quickstart_folder / "wandb").rglob("*.wandb"))
    AutoModelForCausalLM.from_pretrained(quickstart_folder / "dpr" / "policies" / "final")
    assert (quickstart_folder / "dpr" / "rollout_samples.jsonl").read_text()


def test_a_new_quickstart_deletes_all_of_the_former_one(
    quickstart_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quickstart_folder, run, symlinks=True)
    fresh_folder(run, MARKER)
    assert [path.name for path in run.iterdir()] == [MARKER]
    assert not caplog.records


def test_report_is_made_again_from_its_folder(quickstart_folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    assert main(["report", "--run", str(quickstart_folder), "--output", str(again)]) == 0
    assert again.read_text() == (quickstart_folder / "report.html").read_text()
    assert main(["report", "--run", str(quickstart_folder / "sft"), "--output", str(tmp_path / "curves.html")]) == 0
    assert "Negative log-likelihood" in (tmp_path / "curves.html").read_text()
    # A report.json of a version that recorded no verdicts gives the same page: they follow from the p-values.
    (tmp_path / "old").mkdir()
    content = json.loads((quickstart_folder / "report.json").read_text())
    for entry in (entry for by_measure in content["paired"].values() for entry in by_measure.values()):
        for key in ("verdict", "p_holm", "standard_error", "n"):
            del entry[key]
    (tmp_path / "old" / "report.json").write_text(json.dumps(content))
    assert main(["report", "--run", str(tmp_path / "old")]) == 0
    assert (tmp_path / "old" / "report.html").read_text() == again.read_text()


def test_quickstart_runs_again_over_its_own_folder(quickstart_folder: Path) -> None:
    """The stages' configs are files that `dpr fit` takes."""
    assert main(["fit", "--config", str(quickstart_folder / "configs" / "dpr.yaml"), "--trainer.max_steps", "1"]) == 0
