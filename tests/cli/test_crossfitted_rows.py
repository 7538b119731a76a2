"""`dpr audit --rows train --folds`: each row is scored by a policy that did not learn from it, and no fold twice."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dpr_lightning.cli import repeated_training
from dpr_lightning.cli.main import main
from dpr_lightning.cli.suspicious_rows import load_demonstrations
from dpr_lightning.data.prompt_identity import prompt_folds
from dpr_lightning.experiments import run_folder
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.rewards.suspicion import checkpoint_scores, rank_average, suspicion
from dpr_lightning.run_manifest import RunManifest, record_stage
from dpr_lightning.workflow.repeated_sft import repeated_sft
from tests.tiny import write_tiny_policy
from tests.workspace import write_rows

AUDIT = ["audit", "--run", "run", "--rows", "train"]
FOLDS = ["--folds", "3", "--fold_share", "0.5"]
COLUMNS = {"prompt": "question", "completion": "answer"}


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_folds_go_on_after_an_interruption_and_score_rows_that_they_did_not_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with adapters and other names of columns; a third of its prompts are there twice."""
    monkeypatch.chdir(tmp_path)
    write_tiny_policy(tmp_path / "base")
    rows = [{"question": f"{a}+{b}=", "answer": f"sum {a + b}"} for a in range(6) for b in range(4)]
    rows += [row | {"answer": "sum 1"} for row in rows[:8]]
    random.Random(0).shuffle(rows)
    write_rows(Path("mine.jsonl"), rows)
    arguments = ["--epochs", "2", "--lora", "2", "--set", "run.wandb=off", "--validation", "0.2"]
    assert main(["sft", "--model", "base", "--train", "mine.jsonl", "--output", "run", *arguments]) == 0

    fit, begun = run_folder.fit, []

    def cut_short(config: Path) -> None:
        begun.append(config.stem)
        if begun == ["fold_1", "fold_2"]:
            raise KeyboardInterrupt
        fit(config)

    monkeypatch.setattr(run_folder, "fit", cut_short)
    assert main([*AUDIT, *FOLDS]) == 130
    assert not Path("run/audit/train.json").exists()
    begun.clear()
    assert main([*AUDIT, *FOLDS]) == 0
    assert begun == ["fold_2", "fold_3"]
    steps = RunManifest.load("run").sft_steps
    assert f"3 folds of {steps // 2} steps each: 1.5 times the {steps} steps of SFT" in capsys.readouterr().out
    cost = {"folds": 3, "steps_of_a_fold": steps // 2, "times_sft": 1.5}
    record = json.loads(Path("run/audit/train.json").read_text())["suspicion"]
    assert record == {"kind": "combined", "normalised": False, **cost}
    combined = [row["row"] for row in read("run/audit/train.listed.jsonl")]

    orders = {}
    for kind, options in (("memorised", []), ("crossfitted", FOLDS)):
        assert main([*AUDIT, *options, "--suspicion", kind]) == 0
        orders[kind] = [row["row"] for row in read("run/audit/train.listed.jsonl")]
    assert begun == ["fold_2", "fold_3"]
    assert "contradicted by a policy which learnt from other rows alone" in capsys.readouterr().out
    numbers = sorted(combined)
    ranks = rank_average([-torch.tensor([float(order.index(row)) for row in numbers]) for order in orders.values()])
    values = [float(ranks[numbers.index(row)]) for row in combined]
    assert values == sorted(values, reverse=True)

    held_out = {row["question"] for row in read(RunManifest.load("run").held_out)}
    numbers = [number for number, row in enumerate(rows, start=1) if row["question"] not in held_out]
    mine = [rows[number - 1] for number in numbers]
    sft = "run/sft/policies/final"
    tokenizer = load_tokenizer(sft)
    data = load_demonstrations(write_rows(Path("mine_alone.jsonl"), mine), tokenizer, sft, columns=COLUMNS, limit=None)
    tokens, mask, *_ = data.batch(np.arange(len(data)), 1.0, int(tokenizer.pad_token_id))
    fold = prompt_folds(data.prompt_hashes, 3, 0, "mine")
    expected = torch.zeros(len(mine))
    for number in range(3):
        learnt = read(f"run/audit/train.folds/fold_{number + 1}.jsonl")
        assert learnt == [row for row, its_fold in zip(mine, fold, strict=True) if its_fold != number]
        scored = [row for row, its_fold in zip(mine, fold, strict=True) if its_fold == number]
        assert {row["question"] for row in learnt}.isdisjoint(row["question"] for row in scored)
        policy = Path(f"run/audit/train.folds/fold_{number + 1}/policies/final")
        assert (policy / "adapter_config.json").is_file()
        indices = torch.from_numpy(np.flatnonzero(fold == number))
        margin = checkpoint_scores(frozen_policy(str(policy))[0], tokens[indices], mask[indices]).margin
        expected[indices] = suspicion([margin], mask[indices]).row
    values = [float(expected[numbers.index(row)]) for row in orders["crossfitted"]]
    assert all(later <= earlier + 1e-5 for earlier, later in pairwise(values)), values
    assert values[0] > values[-1] + 0.1


def write_run(folder: Path, **changes: Any) -> RunManifest:
    """The record and the config of a run of 8 steps on two devices, in another working directory."""
    config = {
        "model": {"class_path": "dpr_lightning.modules.SupervisedIRL",
                  "init_args": {"policy": {"source": "base"}, "schedule": {"kind": "cosine", "total_steps": 8}}},
        "data": {"class_path": "dpr_lightning.data.DemonstrationDataModule",
                 "init_args": {"train": "mine.jsonl", "validation": "v.jsonl", "chat_template": "t.jinja",
                               "batch_size": 4, "limit": 9}},
        "trainer": {"max_epochs": 2, "devices": 2, "strategy": "ddp", "accumulate_grad_batches": 3,
                    "gradient_clip_val": 1.0, "callbacks": [{"class_path": "x.Y"}]},
        "run": {"manifest": "run/run.json", "early_stopping": 3},
    }  # fmt: skip
    work = folder / "work"
    (work / "run" / "sft" / "policies" / "step_0000006").mkdir(parents=True)
    (work / "t.jinja").write_text("{{ messages }}")
    (work / "run" / "sft" / "policies" / "references.json").write_text('{"step_0000006": 0.75, "final": 1.0}')
    (work / "run" / "sft" / "config.yaml").write_text(yaml.safe_dump(config | changes))
    policy = {"source": "/models/base", "lora": {"rank": 2}}
    entry = {"policies": str(work / "run/sft/policies"), "policy": policy, "folder": str(work), "train": "mine.jsonl"}
    record_stage(work / "run" / "run.json", "sft", entry)
    return RunManifest.load(work / "run")


def test_the_recipe_is_that_of_the_run_wherever_it_is_repeated(tmp_path: Path) -> None:
    manifest = write_run(tmp_path)
    config = repeated_sft(manifest, tmp_path / "fold_1.jsonl", tmp_path / "fold_1", steps=4, references=[0.5])
    assert manifest.sft_steps == 8
    data = config["data"]["init_args"]
    assert data["train"] == str(tmp_path / "fold_1.jsonl")
    assert (data["validation"], data["limit"], data["batch_size"]) == (None, None, 4)
    assert data["chat_template"] == str(tmp_path / "work" / "t.jinja")  # relative to where SFT was run
    model = config["model"]["init_args"]
    assert model["policy"] == {"source": "/models/base", "lora": {"rank": 2}}
    assert model["schedule"] == {"kind": "cosine", "total_steps": None}  # it ends with the shorter training
    trainer = config["trainer"]
    assert (trainer["max_steps"], trainer["max_epochs"], trainer["gradient_clip_val"]) == (4, None, 1.0)
    assert (trainer["devices"], trainer["strategy"], trainer["callbacks"]) == (1, "auto", [])
    assert trainer["accumulate_grad_batches"] == 6  # on one device as many rows a step as on two
    assert config["run"]["references"] == [0.5]
    assert "manifest" not in config["run"]


def test_rows_that_count_twice_are_learnt_twice(tmp_path: Path) -> None:
    policy = str(write_tiny_policy(tmp_path / "base"))
    rows = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(4)]
    twice = {"path": write_rows(tmp_path / "a.jsonl", rows), "weight": 2}
    source: Any = [twice, write_rows(tmp_path / "b.jsonl", [{"prompt": "8+1=", "completion": "9"}])]
    data = load_demonstrations(source, load_tokenizer(policy), policy, columns=None, limit=None)
    prompts = [row.values["prompt"] for row in repeated_training.rows_of(source, data)]
    assert sorted(prompts) == sorted([row["prompt"] for row in rows] * 2 + ["8+1="])
