"""Evaluation during training: ranks share the prompts out, and find what one process finds."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.strategies.launch import run_ranks
from tests.training import write_prompts
from tests.workspace import make_workspace, write_sft_config


def test_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    """Seven prompts on two ranks."""
    workspace, prompts = make_workspace(tmp_path), write_prompts(tmp_path / "asked.jsonl", 7)
    evaluation = {
        "class_path": "dpr_lightning.callbacks.GenerationEvaluation",
        "init_args": {
            "prompts": prompts,
            "verifier": "tests.callbacks.test_monitors:contains_a_vowel",
            "max_new_tokens": 5,
            "every_n_steps": 1,
        },
    }
    result: list[list[dict[str, Any]]] = []
    for ranks in (1, 2):
        folder = tmp_path / f"ranks_{ranks}"
        folder.mkdir()
        logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
        several = {"strategy": "ddp"} if ranks > 1 else {}
        trainer = {"callbacks": [evaluation], "logger": logger, "devices": ranks, "log_every_n_steps": 1, **several}
        policy = {"source": workspace.sft}
        config = write_sft_config(folder, policy, workspace.demonstrations, trainer=trainer, batch_size=4 // ranks)
        settings = yaml.safe_load(Path(config).read_text())
        settings["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
        Path(config).write_text(yaml.safe_dump(settings))
        run_ranks(["dpr_lightning.cli.main", "fit", "--config", config], ranks, folder / "logs")
        (table,) = folder.rglob("metrics.csv")
        with table.open() as file:
            result.append([row for row in csv.DictReader(file) if row["evaluation/sampled_T1"]])
    one, two = result
    names = [name for name in one[0] if name.startswith("evaluation/")]
    assert len(names) == 4
    assert len(one) == len(two) == 3
    for here, there in zip(one, two, strict=True):
        for name in names:
            assert float(there[name]) == pytest.approx(float(here[name]), abs=1e-12)
    assert 0 < float(one[0]["evaluation/sampled_T1"]) < 1
