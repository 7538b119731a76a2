"""No command overwrites what it reads or what this package did not write."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpr_lightning.cli.audit_command import FAILED
from dpr_lightning.cli.main import main
from dpr_lightning.locking import LOCK
from tests.cli.path_kit import EXPORT, POLICY, REWARD, Begun, begin, fit, refused, snapshot
from tests.training import write_adapter
from tests.workspace import Workspace

LISTED = "[d.jsonl, {path: prompts.jsonl, weight: 2}]"
JUDGE = ["judge", "--first", "prompts.jsonl", "--second", "d.jsonl", "--endpoint.model", "m"]
COLLISIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "the same folder": ([*EXPORT, "sft"], ("`output`", "`source`", "sft")),
    "spelt in another way": ([*EXPORT, "./reference/../sft/"], ("`output`", "`source`")),
    "through a link": ([*EXPORT, "link"], ("`output`", "`source`", "link")),
    "a folder around it": ([*EXPORT, "."], ("`output`", "`source`", "around")),
    "a folder in it": ([*EXPORT, "sft/whole"], ("`output`", "`source`", " in ")),
    "the weights it moves away from": (
        ["export", "--source", "sft", "--reference", "reference", "--extrapolation", "1", "--output", "reference"],
        ("`output`", "`reference`"),
    ),
    "the base of an adapter": (
        ["export", "--source", "adapter", "--output", "sft"],
        ("`output`", "the base of the adapter in `source`"),
    ),
    "generate over its prompts": (["generate", *POLICY, "--output", "prompts.jsonl"], ("`output`", "`prompts`")),
    "a hard link to its prompts": (["generate", *POLICY, "--output", "hard.jsonl"], ("`output`", "`prompts`")),
    "into the policy": (["generate", *POLICY, "--output", "sft/answers.jsonl"], ("`output`", "`policy`")),
    "over a reference": (
        ["generate", *POLICY, "--references", "[reference]", "--output", "reference/config.json"],
        ("`output`", "`references[0]`"),
    ),
    "over one file of a pattern": (
        ["generate", "--policy", "sft", "--prompts", "prom*.jsonl", "--output", "prompts.jsonl"],
        ("`output`", "`prompts`"),
    ),
    "over one file of a list with weights": (
        ["generate", "--policy", "sft", "--output", "prompts.jsonl", "--prompts", LISTED],
        ("`output`", "`prompts[1].path`"),
    ),
    "evaluate over its prompts": (["evaluate", *POLICY, "--output", "prompts.jsonl"], ("`output`", "`prompts`")),
    "rewards over its responses": (
        ["rewards", *REWARD, "--responses", "r/rewards.parquet", "--output", "r"],
        ("`output`", "`responses`", "r/rewards.parquet"),
    ),
    "audit over its demonstrations": (
        ["audit", *REWARD, "--demonstrations", "demonstrations.jsonl", "--output", "demonstrations.jsonl"],
        ("`output`", "`demonstrations`"),
    ),
    "preview over its prompts": (
        ["preview", *REWARD, "--prompts", "prompts.jsonl", "--output", "prompts.jsonl"],
        ("`output`", "`prompts`"),
    ),
    "best_of in a policy": (
        ["best_of", *REWARD, "--prompts", "prompts.jsonl", "--verifier", "answer", "--output", "sft"],
        ("`output`", "`sft`", "best_of.json"),
    ),
    "judge over an answer file": (
        [*JUDGE, "--output", "d.jsonl"],
        ("`output`", "`second`"),
    ),
    "judge over its own cache": (
        [*JUDGE, "--cache", "new.jsonl", "--output", "new.jsonl"],
        ("`cache`", "`output`"),
    ),
    "harness over its policy": (
        ["harness", "--policy", "sft", "--tasks", "[x]", "--output", "sft/config.json"],
        ("`output`", "`policy`"),
    ),
    "report over the metrics": (["report", "--run", "r", "--output", "r/metrics.csv"], ("`output`", "`run`")),
    "toy over its source": (
        ["toy", "--task", "scan", "--source", "toy/data/test.jsonl", "--output", "toy"],
        ("`output`", "`source`"),
    ),
    "compare in its pool": (
        ["compare", "--arms", "{a: {}}", "--seeds", "[1]", "--pool", "[pool]", "--output", "pool"],
        ("`output`", "`pool[0]`", "seed_1.json"),
    ),
    "compare in its data": (
        ["compare", "--arms", "{a: {}}", "--seeds", "[1]", "--data", "pool/seed_1", "--output", "pool"],
        ("`output`", "`data`"),
    ),
    "over the command's own config": (
        ["generate", "--config", "options.yaml", "--output", "options.yaml"],
        ("`output`", "`--config`"),
    ),
    "quickstart over a policy": (["quickstart", "--output", "sft"], ("sft",)),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_a_command_that_would_overwrite_what_it_reads(
    name: str, case: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    (case / "link").symlink_to("sft")
    os.link("prompts.jsonl", "hard.jsonl")
    shutil.copy("demonstrations.jsonl", "d.jsonl")
    for folder in ("r", "toy/data", "pool/seed_1/base", "pool/seed_1/data"):
        (case / folder).mkdir(parents=True)
    for file in ("r/rewards.parquet", "r/metrics.csv", "toy/data/test.jsonl", "pool/seed_1.json"):
        (case / file).write_text('{"answer": 1}')
    (case / "options.yaml").write_text("policy: sft\nprompts: prompts.jsonl\n")
    write_adapter(case / "sft", case / "adapter", seed=1)
    arguments, says = COLLISIONS[name]
    refused(arguments, capsys, *says)


def test_the_remedy_works(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused([*EXPORT, "sft"], capsys, "Name another path for `output`")
    assert "overwrite" in message
    assert main([*EXPORT, "other"]) == 0
    assert main([*EXPORT, "other"]) == 0  # its own folder is replaced
    assert (case / "other" / "model.safetensors").exists()


def test_a_cache_may_be_hidden_in_the_folder_of_the_rows(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case / "rows").mkdir()
    shutil.copy("demonstrations.jsonl", "rows/a.jsonl")
    arguments = fit("sft", "--data.train", "rows")
    message = refused([*arguments, "--data.cache_dir", "rows/cache"], capsys, "`data.cache_dir`", "`data.train`")
    hidden = message.rpartition("such as ")[2].strip().rstrip(".")
    assert hidden == "rows/.cache"
    assert main([*arguments, "--data.cache_dir", hidden]) == 0
    assert len(list((case / "rows" / ".cache").iterdir())) == 1
    # What the run wrote there makes it no other run.
    assert main([*arguments, "--data.cache_dir", hidden, "--trainer.max_steps", "3"]) == 0
    assert not list(case.rglob(LOCK))
    link = case / "rows" / ".link"
    link.symlink_to(case / "sft")
    refused([*arguments, "--data.cache_dir", "rows/.link"], capsys, "`model.policy.source`")


def test_a_run_does_not_replace_what_it_starts_from(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fit("sft", output="first")) == 0
    says = ("`ReferenceCheckpoints.folder`", "`model.policy.source`", "first/policies/final")
    refused(fit("first/policies/final", output="first"), capsys, *says)
    refused(fit("first/policies/step_0000001", output="first"), capsys, "step_0000001")
    refused(fit("sft", "--model.policy.checkpoint", "first/policies/final", output="first"), capsys, ".checkpoint`")
    write_adapter(case / "first" / "policies" / "final", case / "adapter", seed=1)
    refused(fit("adapter", output="first"), capsys, "the base of the adapter in `model.policy.source`")
    step = "first/checkpoints/step_0000002"
    refused(fit("sft", "--model.policy.checkpoint", f"{step}/state.ckpt", output="first"), capsys, "ResumableCheck")
    # The same run goes on, from what is found and from what is named, and from the config that it saved.
    assert main(fit("sft", output="first")) == 0
    assert main(fit("sft", "--trainer.max_steps", "3", "--ckpt_path", step, output="first")) == 0
    saved = snapshot(case / "first" / "policies")
    assert main(["fit", "--config", "first/config.yaml"]) == 0
    assert snapshot(case / "first" / "policies") == saved
    # Another run in the same parent folder starts from the first one.
    assert main(fit("first/policies/final", output="first/second")) == 0
    assert not list(case.rglob(LOCK))


FIT_COLLISIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "data in a checkpoint that is rotated": (
        ["--data.train", "out/checkpoints/step_0000001/demonstrations.jsonl"],
        ("`data.train`", "`ResumableCheckpoints.folder`"),
    ),
    "tokenizer": (["--data.tokenizer", "out/policies/final"], ("`data.tokenizer`", "out/policies/final")),
    "validation rows as the run's table": (
        ["--data.validation", "out/metrics.csv"],
        ("`data.validation`", "`CSVLogger.save_dir`"),
    ),
    "two callbacks in one folder": (
        ["--trainer.callbacks.init_args.folder", "out/policies"],
        ("`ReferenceCheckpoints.folder`", "`ResumableCheckpoints.folder`"),
    ),
    "a template": (["--data.chat_template", "out/policies/references.json"], ("`data.chat_template`",)),
    "a log in the source": (["--trainer.logger.init_args.save_dir", "sft"], ("`CSVLogger.save_dir`", "sft/metrics")),
    "a cache in the source": (["--data.cache_dir", "sft/cache"], ("`data.cache_dir`", "`model.policy.source`")),
    "its own config": (["--config", "out/config.yaml"], ("`CSVLogger.save_dir`", "`--config`")),
    "Lightning's checkpoints": (
        [
            "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
            "--trainer.callbacks.dirpath=ckpt",
            "--model.policy.checkpoint=ckpt/last.ckpt",
        ],
        ("`ModelCheckpoint.dirpath`", "`model.policy.checkpoint`"),
    ),
}


@pytest.mark.parametrize("name", FIT_COLLISIONS)
def test_every_path_of_a_run_is_compared(name: str, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("out/checkpoints/step_0000001", "out/policies", "ckpt"):
        (case / folder).mkdir(parents=True)
    shutil.copytree("sft", "out/policies/final")
    for file in ("out/checkpoints/step_0000001/demonstrations.jsonl", "out/metrics.csv"):
        shutil.copy("demonstrations.jsonl", file)
    (case / "ckpt" / "last.ckpt").touch()
    (case / "out" / "policies" / "references.json").write_text("{{ messages }}")
    (case / "out" / "config.yaml").write_text("trainer:\n  max_steps: 3  # as we agreed\n")
    options, says = FIT_COLLISIONS[name]
    arguments = fit("sft")
    refused([*arguments, *options], capsys, *says)


def test_a_rollout_run_compares_its_paths(
    case: Path, dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = dpr_config(prompts="prompts.jsonl", sft="sft", references=["reference"])
    for option, value, says in (
        ("precomputed", "prompts.jsonl", "`data.prompts`"),
        ("precomputed", "reference/kept", "`data.references[0]`"),
        ("precomputed", "sft", "`data.sft`"),
    ):
        refused(["fit", "--config", config, f"--data.{option}", value], capsys, f"`data.{option}`", says)


FOREIGN: dict[str, tuple[str, list[str]]] = {
    "export over a folder of something else": ("book/thesis.tex", [*EXPORT, "book"]),
    "export over a file": ("book", [*EXPORT, "book"]),
    "export over somebody's weights": ("book/pytorch_model.bin", [*EXPORT, "book"]),
    "generate": ("rows.jsonl", ["generate", *POLICY, "--output", "rows.jsonl"]),
    "evaluate": ("notes.json", ["evaluate", *POLICY, "--output", "notes.json"]),
    "evaluate over a folder": ("notes/a.json", ["evaluate", *POLICY, "--output", "notes"]),
    "rewards": ("r/heatmap.html", ["rewards", *REWARD, "--responses", "prompts.jsonl", "--output", "r"]),
    "the page beside an audit": (
        "a.html",
        ["audit", *REWARD, "--demonstrations", "demonstrations.jsonl", "--output", "a.json"],
    ),
    "report": ("r/report.html", ["report", "--run", "sft", "--output", "r/report.html"]),
    "toy": ("mine/data/test.jsonl", ["toy", "--output", "mine"]),
    "toy's policy": ("mine/base/model.safetensors", ["toy", "--output", "mine"]),
    "compare": ("c/compare.yaml", ["compare", "--arms", "{a: {}}", "--seeds", "[1]", "--output", "c"]),
    "fit": ("out/policies/final/thesis.tex", []),
    "fit's table": ("out/metrics.csv", []),
    "fit's list": ("out/policies/references.json", []),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_this_package_did_not_write_is_not_overwritten(
    name: str, case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, arguments = FOREIGN[name]
    (case / file).parent.mkdir(parents=True, exist_ok=True)
    (case / file).write_text('{"prompt": "precious"}\n')
    message = refused(arguments or fit("sft"), capsys, file.split("/")[0], "did not write" * ("over a fo" not in name))
    assert re.search(r"Name another path for `[\w.]+`, or move that one away", message)
    # The remedy works: nothing more is said of this file once it is moved away.
    (case / file).rename(case / "moved")
    for folder in (case / file).parents:
        if folder != case and case in folder.parents:
            folder.rmdir()
    with pytest.raises(Begun):
        begin(arguments or fit("sft"))


SHORT = ["--max_new_tokens", "3", "--limit", "4"]
AGAIN: dict[str, list[str]] = {
    "generate": ["generate", *POLICY, *SHORT, "--output", "new/answers.jsonl"],
    "evaluate": ["evaluate", *POLICY, *SHORT, "--output", "new/scores.json"],
    "evaluate, several samples": ["evaluate", *POLICY, *SHORT, "--samples", "2", "--output", "new/scores.json"],
    "preview": ["preview", *REWARD, *SHORT, "--prompts", "prompts.jsonl", "--samples", "2", "--output", "new/p.json"],
    "audit": ["audit", *REWARD, "--demonstrations", "demonstrations.jsonl", "--limit", "4", "--output", "new/a.json"],
    "best_of": [
        *("best_of", *REWARD, *SHORT, "--prompts", "prompts.jsonl", "--verifier", "answer", "--samples", "2"),
        *("--output", "new"),
    ],
    "rewards": ["rewards", *REWARD, "--responses", "demonstrations.jsonl", "--output", "new"],
    "report": ["report", "--run", "new", "--output", "new/page.html"],
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_command_replaces_its_result_when_it_runs_again(name: str, case: Path) -> None:
    if name == "report":
        assert main(AGAIN["best_of"]) == 0
    code = main(AGAIN[name])
    assert code in (0, FAILED)  # as an audit ends that no reward passes
    assert main(AGAIN[name]) == code


def test_an_evaluation_leaves_the_table_of_the_training(case: Path) -> None:
    arguments = fit("sft", "--data.validation", "prompts.jsonl", "--data.allow_overlap", "true")
    assert main(arguments) == 0
    table = (case / "out" / "metrics.csv").read_bytes()
    assert main(["validate", *arguments[1:]]) == 0
    assert (case / "out" / "metrics.csv").read_bytes() == table
    assert b"val" in (case / "out" / "validate" / "metrics.csv").read_bytes()
    assert main(["validate", *arguments[1:]]) == 0


def test_a_reader_finds_a_folder_that_was_being_replaced(case: Path) -> None:
    (case / "sft").rename(case / ".sft.previous")
    assert main(["generate", *POLICY, "--max_new_tokens", "2", "--limit", "1"]) == 0
