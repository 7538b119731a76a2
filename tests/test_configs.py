"""Every config parses by the command its own header names; every toy one takes optimizer steps."""

import csv
import json
import math
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dpr_lightning.cli.main import main
from dpr_lightning.workflow.model_recipes import MODELS
from tests.workspace import write_rows

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# Small enough for a step to take no time.
STEPPED = [path for path in CONFIGS if path.parent.name in ("toy", "smoke")]
TOY = "toy --output runs/toy --demonstrations 40 --prompts 64 --development 8 --test 8 --hidden_size 32 --layers 2"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 3
    assert len(STEPPED) >= 3


def alike(path: Path) -> bool:
    """Whether a recipe differs in its model alone from others, which are parsed."""
    return path.parent.name in {model.name for model in MODELS} - {"qwen3_8b"}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.slow if alike(path) else (), id=name(path)) for path in CONFIGS]
)
def test_config_parses(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    arguments = own_command(path)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(printed, dict)
    assert printed


@pytest.mark.parametrize("folder", ["toy", "smollm2", "8b"])
def test_recipes_are_short(folder: str) -> None:
    recipes = {path: path.read_text(encoding="utf-8").splitlines() for path in CONFIGS if path.parent.name == folder}
    assert recipes
    for path, lines in recipes.items():
        assert len(lines) <= 40, path
        assert max(map(len, lines)) <= 120, path


@pytest.mark.parametrize("path", STEPPED, ids=name)
def test_toy_config_takes_steps(path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_folder)
    arguments = own_command(path)
    less = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    assert main([*arguments, *less]) == 0
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    with (toy_folder / settings["trainer"]["default_root_dir"] / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row.get("train/loss")]
    assert [int(row["step"]) for row in trained] == [0, 1]
    losses = [float(row["train/loss"]) for row in trained]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with all files that the toy configs read; each policy has different weights.

    A config may read what another one writes; with these files, each can be tested separately.
    """
    folder = tmp_path_factory.mktemp("toy")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(shlex.split(TOY)) == 0
        for seed, policy in enumerate(sorted(set(map(str, policies_read(STEPPED))))):
            if not Path(policy).exists():
                stand_in(Path("runs/toy/base"), Path(policy), seed)
        rows = [json.loads(line) for line in Path("runs/toy/data/demonstrations.jsonl").read_text().splitlines()]
        pairs = [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
            for row, other in pairwise(rows)
        ]
        write_rows(Path("runs/toy/data/pairs.jsonl"), pairs)
    return folder


def own_command(path: Path) -> list[str]:
    """Arguments of the command in a config's header that reads the config itself."""
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = [match[1] for line in header if (match := re.match(r"#\s+dpr (.+)", line))]
    commands_of_config = [command for command in commands if name(path) in shlex.split(command)]
    assert commands_of_config, f"{name(path)} must open with what it does, what it costs, and its `dpr` command"
    return shlex.split(commands_of_config[-1])


def policies_read(paths: list[Path]) -> Iterator[str]:
    """Folders of policies that configs name."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("source", "sft", "checkpoint") and isinstance(value, str):
                    yield value
                elif key == "references":
                    yield from value
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for path in paths:
        yield from walk(yaml.safe_load(path.read_text(encoding="utf-8")))


def stand_in(base: Path, folder: Path, seed: int) -> None:
    """A policy with the base's tokenizer and architecture, and weights moved a little."""
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    for path in base.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
