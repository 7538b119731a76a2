"""The report of a training run: its stages in their order, with samples and records, from the files of a run."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.experiments.run_report import run_report
from dpr_lightning.experiments.saved_report import load_report

RECORD = {
    "command": "dpr sft --model base",
    "config_files": ["run/sft.yaml"],
    "content": {"data.init_args.train": "file ab12"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "seed_everything": 3,
    "versions": {"torch": "2.13"},
    "model": {"class_path": "dpr_lightning.modules.SupervisedIRL", "init_args": {"loss": "sft", "iq_learn": None}},
    "data": {"class_path": "x.Data"},
    "trainer": {"max_steps": 9, "logger": None},
}


def write_stage(folder: Path, table: str, record: object = None) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(table)
    if record is not None:
        (folder / "hparams.yaml").write_text(yaml.safe_dump(record))


def write_samples(folder: Path, steps: int) -> None:
    rows = [
        {"step": step, "prompt": f"p{step}", "score": score, "token_rewards": [["a", -1.0], ["b", 0.5]]}
        for step in range(0, 10 * steps, 10)
        for score in (1.0, None)
    ]
    (folder / "rollout_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    rollouts = "step,train/gradient_norm,rollout/reward,held_out/nll\n0,1,-3,\n1,2,-1,\n0,,,0.5\n1,,,0.75\n"
    write_stage(folder / "rl", rollouts, RECORD | {"model": {"class_path": "m.DensePathReinforce"}})
    write_stage(
        folder / "sft", "step,train/gradient_norm,train/nll,validation/nll\n0,1,4,4.5\n1,2,2,\n1,,,2.5\n", RECORD
    )
    write_stage(folder / "sft" / "validate", "step,validation/nll\n1,2.5\n")
    write_samples(folder / "rl", 20)
    return folder


def test_stages_are_in_the_order_in_which_they_ran(run: Path) -> None:
    report = run_report(run)
    assert report.title == "Run mine"
    assert list(report.panels) == ["sft: SupervisedIRL", "rl: DensePathReinforce"]
    assert [panel.title for panel in report.panels["sft: SupervisedIRL"]] == [
        "Negative log-likelihood",
        "Gradient norm",
    ]
    assert [panel.title for panel in report.panels["rl: DensePathReinforce"]] == [
        *("Reward of samples", "NLL of held-out demonstrations", "Gradient norm")
    ]
    assert report.verdict.splitlines() == [
        "sft: SupervisedIRL, first → last: validation nll 4.5 → 2.5.",
        "rl: DensePathReinforce, first → last: held out nll 0.5 → 0.75, rollout reward -3 → -1.",
    ]
    assert list(run_report(run / "sft").panels) == ["sft: SupervisedIRL"]


def test_what_repeats_a_stage_is_recorded(run: Path) -> None:
    report = run_report(run)
    assert report.records["sft: SupervisedIRL"] == {
        "commit": "0123456789ab, with files changed since",
        "config": "run/sft.yaml",
        "seed": 3,
        "data.train": "file ab12",
        "versions": "torch 2.13",
    }
    assert report.commands == ["dpr sft --model base"] * 2
    assert report.settings["sft: SupervisedIRL"]["model"]["init_args"] == {"loss": "sft"}
    assert not report.machine  # that of the report need not be that of the run
    (run / "sft" / "hparams.yaml").write_text("{}\n")
    assert list(run_report(run).records) == ["rl: DensePathReinforce"]


def test_samples_are_of_steps_far_apart(run: Path) -> None:
    samples = run_report(run).rollouts
    assert [sample.label for sample in samples[::2]] == [f"step {step}" for step in (0, 30, 50, 80, 110, 140, 160, 190)]
    assert [sample.correct for sample in samples[:2]] == [True, None]
    assert (samples[0].prompt, samples[0].tokens, samples[0].reward) == ("p0", ["a", "b"], [-1.0, 0.5])
    write_samples(run / "rl", 1)
    with (run / "rl" / "rollout_samples.jsonl").open("a") as stream:
        stream.write('{"step": 20, "prom')  # of a run that was killed
    assert [sample.label for sample in run_report(run).rollouts] == ["step 0", "step 0"]


def test_the_check_is_on_the_page(run: Path) -> None:
    (run / "check").mkdir()
    (run / "check" / "check.json").write_text('{"reasons": ["It is noise.", "No form passes."]}')
    (run / "check" / "preview.json").write_text('{"rewards": [], "verdict": "nothing"}')
    report = run_report(run)
    assert report.verdict.splitlines()[2] == "Check before reinforcement learning: It is noise. No form passes."
    assert report.preview is None


def test_a_saved_report_has_its_samples_and_records(run: Path, tmp_path: Path) -> None:
    report = run_report(run)
    (tmp_path / "report.json").write_text(json.dumps(dataclasses.asdict(report)))
    loaded = load_report(tmp_path / "report.json")
    assert json.dumps(dataclasses.asdict(loaded)) == json.dumps(dataclasses.asdict(report))
    assert loaded.rollouts[0].label == "step 0"


def test_a_folder_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither report\.json nor a metrics\.csv"):
        run_report(tmp_path)
    write_stage(tmp_path / "sft", "step,lr\n0,1\n")
    with pytest.raises(InputError, match="has no curve of a training run"):
        run_report(tmp_path)


@pytest.mark.parametrize("name", ["check/check.json", "check/preview.json", "sft/hparams.yaml"])
def test_damaged_files_are_named(name: str, run: Path) -> None:
    (run / "check").mkdir()
    (run / name).write_text("a: !!python/name:os.system\n{")
    with pytest.raises(InputError, match=name):
        run_report(run)
