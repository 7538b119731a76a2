"""The `run:` section: what a config without callbacks and loggers leaves, where, and what takes its place."""

import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import dict_to_namespace
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging

from dpr_lightning.callbacks import ReferenceCheckpoints, ResumableCheckpoints, RunManifestFile, ValidateAtEnds
from dpr_lightning.cli.main import main
from dpr_lightning.data import PolicyDataModule
from dpr_lightning.lightning_cli import run_defaults
from dpr_lightning.lightning_cli.dpr_cli import parse_lightning
from dpr_lightning.lightning_cli.run_defaults import RunParts, parts_of_run, settle_run
from dpr_lightning.provenance import provenance
from tests.cli.path_kit import snapshot
from tests.workspace import Workspace, write_dpr_config, write_sft_config

QUIET = ["--trainer.enable_checkpointing=null", "--trainer.logger=null"]
MODULES = "dpr_lightning.modules."


def minimal(path: str = "mine.yaml", **sections: Any) -> list[str]:
    """The arguments of SFT for two steps, whose config names neither callbacks nor loggers nor a folder."""
    config = {
        "model": {"class_path": MODULES + "SupervisedIRL", "init_args": {"policy": {"source": "sft"}}},
        "data": {
            "class_path": "dpr_lightning.data.DemonstrationDataModule",
            "init_args": {"train": "demonstrations.jsonl", "batch_size": 4, "cache_dir": None},
        },
        "trainer": {"max_steps": 4, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
        **sections,
    }
    Path(path).write_text(yaml.safe_dump(config))
    return ["fit", "--config", path, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def files(folder: str = ".") -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def parts(*arguments: str) -> RunParts:
    """The callbacks and loggers of `dpr fit` with these arguments."""
    config = dict_to_namespace(parse_lightning(["fit", *arguments]))
    settle_run(config, [Path("mine.yaml")])
    return parts_of_run(config.as_dict(), "fit")


def kinds(added: RunParts) -> dict[str, dict[str, Any]]:
    return {default.kind.__name__: default.options for default in (*added.callbacks, *added.loggers)}


def test_a_minimal_config_leaves_a_run_that_goes_on(
    case: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["-c"])  # the name of a program that `python -c` runs, and no option
    fit = [*minimal(), "--run.wandb=off"]
    assert main(fit) == 0
    assert "`trainer.default_root_dir` is left out: the run is in runs/mine." in caplog.text
    assert capsys.readouterr().out.endswith(": dpr check --run runs/mine\n")
    policies = {
        f"policies/{name}/model.safetensors" for name in ("step_0000001", "step_0000002", "step_0000003", "final")
    }
    output = files("runs/mine")
    assert policies | {"policies/references.json", "checkpoints/step_0000004/state.ckpt"} <= output
    expected = {"metrics.csv", "hparams.yaml", "config.yaml", "held_out.jsonl", "run.json"}
    assert {path for path in output if "/" not in path} == expected
    rows, held_out = (
        Path(name).read_text().splitlines() for name in ("demonstrations.jsonl", "runs/mine/held_out.jsonl")
    )
    assert len(held_out) == 3
    assert set(held_out) < set(rows)
    before = snapshot(case / "runs")
    assert main(fit) == 0
    assert "nothing was left to do" in caplog.text
    assert snapshot(case / "runs") == before


def test_the_record_of_a_run_has_its_command_commit_and_files(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-C", str(case)]
    for arguments in (["init", "-q"], ["add", "demonstrations.jsonl"], ["commit", "-q", "-m", "data"]):
        subprocess.run([*git, *arguments], check=True)
    fit = [*minimal(), "--run.wandb=off", "--trainer.max_steps=1"]
    assert main(fit) == 0
    record = yaml.safe_load(Path("runs/mine/hparams.yaml").read_text())
    assert record["command"] == "dpr " + " ".join(fit)
    assert (record["config_files"], record["seed_everything"]) == (["mine.yaml"], 0)
    assert record["git"] == {"commit": git_output(git, "rev-parse", "HEAD"), "dirty": False}
    assert record["content"]["data.init_args.train"].startswith("file ")
    assert record["model"]["init_args"]["policy"]["source"] == "sft"
    assert set(record["versions"]) == {"python", "dpr_lightning", "torch", "transformers", "lightning"}
    with Path("demonstrations.jsonl").open("a") as file:
        file.write("\n")
    assert provenance(["fit"])["git"]["dirty"]
    monkeypatch.setenv("PATH", "")
    assert "git" not in provenance(["fit"])


def git_output(git: list[str], *arguments: str) -> str:
    return subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_the_saved_config_is_complete_and_moves_with_one_option(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = minimal(run={"wandb": False, "resume_every_n_steps": 2})
    with pytest.raises(SystemExit):
        main([*fit, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert main(fit) == 0
    saved = yaml.safe_load(Path("runs/mine/config.yaml").read_text())
    assert printed == saved
    assert saved["run"]["references"] == [0.25, 0.5, 0.75]
    assert saved["trainer"]["default_root_dir"] == "runs/mine"
    before, expected = snapshot(case / "runs" / "mine"), files("runs/mine")
    assert main(["fit", "--config", "runs/mine/config.yaml", "--trainer.default_root_dir", "elsewhere"]) == 0
    assert files("elsewhere") == expected
    assert snapshot(case / "runs" / "mine") == before


def test_a_run_can_write_nothing(case: Path) -> None:
    fit = minimal(run=None)
    before = files()
    assert main(fit) == 0
    assert main([*minimal("other.yaml"), "--run=null"]) == 0
    assert files() - {"other.yaml"} == before


def test_the_config_is_in_the_run_where_no_logger_has_a_folder(case: Path) -> None:
    assert main([*minimal(), "--run.wandb=off", "--run.csv=false", "--run.resume_every_n_steps=null"]) == 0
    expected = {"mine/config.yaml", "mine/held_out.jsonl", "mine/run.json"}
    assert {name for name in files("runs") if "policies" not in name} == expected
    before = snapshot(case / "runs")
    assert main(["validate", *minimal()[1:], "--data.validation=0.25", "--run.wandb=off", "--run.csv=false"]) == 0
    assert snapshot(case / "runs") == before


def test_held_out_rows_have_a_file_where_the_config_names_none(case: Path) -> None:
    def file(*options: str, **sections: Any) -> str | None:
        return parts(*minimal(**sections)[1:], *options).held_out_file

    assert file() == file("--data.validation=0.1") == "runs/mine/held_out.jsonl"
    assert file("--data.validation=null") is file("--data.validation=demonstrations.jsonl") is None
    assert file("--data.held_out_file=mine.jsonl") is file(run=None) is None
    assert main([*minimal(), "--run=null", "--data.held_out_file=mine.jsonl", "--trainer.max_steps=1"]) == 0
    assert len(Path("mine.jsonl").read_text().splitlines()) == 3
    assert main([*minimal(), "--data.held_out_file=demonstrations.jsonl"]) == 2
    assert main([*minimal(), "--run=null", "--data.held_out_file=new.jsonl", "--trainer.fast_dev_run=true"]) == 0
    assert not Path("new.jsonl").exists()


class SplittingData(PolicyDataModule):
    """Data of a plug-in that hold rows out where their option says so."""

    @classmethod
    def splits_off_rows(cls, options: Mapping[str, Any]) -> bool:
        return bool(options.get("share"))


@pytest.mark.parametrize(("share", "expected"), [(0.1, True), (0.0, False)])
def test_data_of_a_plug_in_get_a_file_for_held_out_rows(share: float, expected: bool) -> None:
    data = {"class_path": f"{__name__}.SplittingData", "init_args": {"share": share}}
    assert run_defaults._holds_out({"data": data}) is expected
    assert not run_defaults._holds_out({"data": {"class_path": "dpr_lightning.data.RewardDataModule"}})


def test_an_evaluation_has_a_table_in_the_folder_of_the_run(case: Path) -> None:
    validate = ["validate", *minimal()[1:], "--data.validation=0.25", "--run.wandb=off"]
    assert main(validate) == 0
    assert files("runs/mine") - {"validate/config.yaml"} == {"validate/metrics.csv", "validate/hparams.yaml"}
    with Path("runs/mine/validate/metrics.csv").open() as file:
        assert "validation/nll" in next(csv.DictReader(file))


def test_rollouts_have_samples_and_a_held_out_reward(tmp_path: Path, workspace: Workspace) -> None:
    config = write_dpr_config(tmp_path, workspace, held_out=workspace.demonstrations)
    arguments = ["--config", config, *QUIET, "--run.verifier=answer", "--run.held_out_limit=3"]
    added = kinds(parts(*arguments))
    assert list(added) == [
        *("ReferenceCheckpoints", "RolloutSamples", "HeldOutReward", "ResumableCheckpoints", "RunManifestFile"),
        *("CSVLogger", "WandbLogger"),
    ]
    assert added["ReferenceCheckpoints"]["fractions"] == []
    assert added["RolloutSamples"]["verifier"] == "answer"
    assert added["HeldOutReward"] == {"every_n_steps": 10, "limit": 3}
    assert "HeldOutReward" not in kinds(
        parts("--config", write_dpr_config(tmp_path, workspace), *QUIET, "--run.csv=true")
    )
    off = ["--run.samples_every_n_rollouts=null", "--run.held_out_every_n_steps=null", "--run.wandb=off"]
    assert list(kinds(parts(*arguments, *off))) == [
        *("ReferenceCheckpoints", "ResumableCheckpoints", "RunManifestFile", "CSVLogger"),
    ]


def test_what_the_config_names_takes_the_place_of_a_default(tmp_path: Path, workspace: Workspace) -> None:
    entries = [
        {"class_path": "dpr_lightning.callbacks.ReferenceCheckpoints", "init_args": {"folder": "kept"}},
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "train/nll"}},
    ]
    trainer = {"callbacks": entries, "enable_checkpointing": None, "logger": None}
    config = write_sft_config(tmp_path, {"source": workspace.sft}, workspace.demonstrations, trainer=trainer)
    named = ["--config", config, "--run.keep_checkpoints=1"]
    assert list(kinds(parts(*named))) == [
        *("ValidateAtEnds", "ResumableCheckpoints", "RunManifestFile", "CSVLogger", "WandbLogger"),
    ]
    assert list(kinds(parts(*named, "--trainer.logger=false", "--run.validate_at_ends=false"))) == [
        *("ResumableCheckpoints", "RunManifestFile"),
    ]
    assert list(kinds(parts(*named, "--trainer.enable_checkpointing=false"))) == [
        *("ValidateAtEnds", "RunManifestFile", "CSVLogger", "WandbLogger"),
    ]
    assert kinds(parts("--config", config)) == {}
    assert kinds(parts(*named, "--trainer.barebones=true")) == {}


@pytest.mark.parametrize(
    ("module", "data", "fractions"),
    [
        ("SupervisedIRL", {}, [0.25, 0.5, 0.75]),
        ("SelfPlay", {"opponent": "sft"}, []),
        ("VerifierHead", {"opponent": "sft"}, []),
    ],
)
def test_the_module_says_which_references_it_leaves(
    module: str, data: dict[str, str], fractions: list[float], case: Path
) -> None:
    source = {"init_args": {"train": "demonstrations.jsonl", "cache_dir": None, **data}}
    source["class_path"] = f"dpr_lightning.data.{'SelfPlay' if data else 'Demonstration'}DataModule"  # type: ignore
    model = {"class_path": MODULES + module, "init_args": {"policy": {"source": "sft"}}}
    arguments = minimal(model=model, data=source)[1:]
    assert kinds(parts(*arguments))["ReferenceCheckpoints"]["fractions"] == fractions
    assert kinds(parts(*arguments, "--run.references=[0.1]"))["ReferenceCheckpoints"]["fractions"] == [0.1]


@pytest.mark.parametrize(
    ("root", "name", "folder"),
    [("runs/toy/sft", "toy-sft", "runs/toy"), ("/a/b/c/d", "b-c-d", "/a/b/c"), (".", None, ".")],
)
def test_weights_and_biases_runs_are_named_by_their_folder(
    root: str, name: str | None, folder: str, case: Path
) -> None:
    options = kinds(parts(*minimal()[1:], "--trainer.default_root_dir", root))["WandbLogger"]
    assert (options["name"], options["save_dir"], options["offline"]) == (name, folder, None)
    for mode, offline in (("online", False), ("offline", True)):
        assert kinds(parts(*minimal()[1:], f"--run.wandb={mode}"))["WandbLogger"]["offline"] is offline


def test_a_policy_is_saved_after_an_average_is_in_it_and_before_the_rest(case: Path) -> None:
    added = parts(*minimal()[1:], "--run.wandb=off")
    named = [EarlyStopping("train/nll"), StochasticWeightAveraging(0.1), EarlyStopping("train/nll")]
    options = added.trainer_options({"callbacks": named, "logger": False, "enable_checkpointing": None})
    callbacks = options["callbacks"]
    assert [callbacks.index(callback) for callback in named] == [0, 1, 6]
    assert [type(callback) for callback in callbacks[2:6]] == [
        *(ReferenceCheckpoints, ValidateAtEnds, ResumableCheckpoints, RunManifestFile),
    ]
    assert set(options) == {"callbacks"}


def test_own_paths_are_checked_under_the_option_that_names_them(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy to start from lies where the run would write its own."""
    Path("runs/mine/policies").mkdir(parents=True)
    Path("sft").rename("runs/mine/policies/final")
    model = {"class_path": MODULES + "SupervisedIRL", "init_args": {"policy": {"source": "runs/mine/policies/final"}}}
    fit = minimal(model=model)
    before = snapshot(case)
    assert main(fit) == 2
    assert "Name another path for `trainer.default_root_dir`" in capsys.readouterr().err
    assert snapshot(case) == before
    assert main([*fit, "--trainer.default_root_dir", "runs/again", "--run.wandb=off"]) == 0


def test_ranks_read_their_own_share(case: Path) -> None:
    config = dict_to_namespace(parse_lightning(minimal()))
    assert config["trainer.use_distributed_sampler"]
    settle_run(config, [])
    assert not config["trainer.use_distributed_sampler"]
    assert config["trainer.default_root_dir"] == "runs/fit"
    assert ResumableCheckpoints.__name__ in kinds(parts_of_run(config.as_dict(), "fit"))
