"""Cleaned demonstrations of an arm: which rows go, what that costs, and what cannot be."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.experiments import cleaned_rows, experiment
from dpr_lightning.experiments.arm_specs import ArmSpec, check_dependencies
from dpr_lightning.experiments.background import Work
from dpr_lightning.experiments.cleaned_rows import CleanSpec, write_cleaned_rows
from dpr_lightning.experiments.experiment import Experiment
from dpr_lightning.experiments.predictions import SeedPreview
from dpr_lightning.experiments.recipes import Recipes
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.rewards.suspicion import CheckpointScores
from tests.workspace import write_rows

ONCE: dict[str, Any] = {"train": "sft", "steps_multiple": 1}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    sizes = ["--demonstrations", "8", "--prompts", "16", "--development", "4", "--test", "4"]
    arguments = ["toy", "--output", str(folder), *sizes, "--hidden_size", "16", "--layers", "1", "--noise", "0.5"]
    assert main(arguments) == 0
    return folder


def _margins(rows: int, width: int, scale: float) -> CheckpointScores:
    """Row r prefers another token in its r-th token alone, by r · scale nats, and is sure of it."""
    margin = torch.zeros(rows, width)
    margin.diagonal()[:] = scale * torch.arange(rows)
    return CheckpointScores(-0.1 - margin, margin)


@pytest.mark.parametrize(
    ("clean", "left"),
    [
        (CleanSpec(), [0, 1, 2]),  # margins of 0, 1, … 7 nats: 3 and more are refused
        (CleanSpec("suspicion", rows=0.25), [0, 1, 2, 3, 4, 5]),
        (CleanSpec("small_loss", rows=0.25), [2, 3, 4, 5, 6, 7]),  # the first reference has the opposite order
    ],
)
def test_rows_are_dropped_by_what_a_policy_says(
    clean: CleanSpec, left: list[int], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(folder: str, tokens: torch.Tensor, mask: torch.Tensor) -> CheckpointScores:
        width = int(mask.sum(1).amax())
        result = _margins(len(tokens), width, 1.0)
        return CheckpointScores(result.logprob.flip(0), result.margin.flip(0)) if folder == "early" else result

    monkeypatch.setattr(cleaned_rows, "frozen_policy", lambda folder: (folder,))
    monkeypatch.setattr(cleaned_rows, "checkpoint_scores", scores)
    monkeypatch.setattr(cleaned_rows, "load_tokenizer", lambda _: _tokenizer(toy))
    source, output = toy / "data" / "demonstrations.jsonl", tmp_path / "out" / "rows.jsonl"
    references = [Path("early"), Path("late")] if clean.by == "small_loss" else [Path("late")]
    arguments: dict[str, Any] = {"policy": Path("final"), "references": references, "count": None, "seed": 0}
    arguments["columns"] = None
    listing = write_cleaned_rows(clean, str(source), output, **arguments)
    lines = source.read_text().splitlines()
    assert output.read_text().splitlines() == [lines[row] for row in left]
    assert sorted(row.number - 1 for row in listing.flagged) == [row for row in range(8) if row not in left]
    assert listing.to_dict()["listed"] == 8 - len(left)
    if clean.by == "refused":
        write_cleaned_rows(CleanSpec(how="mask"), str(source), output, **arguments)
        spans = [json.loads(line).get("loss_spans", []) for line in output.read_text().splitlines()]
        assert [[(span["start"], span["end"]) for span in row] for row in spans] == [
            [(row, row + 1)] if row >= 3 else [] for row in range(8)
        ]


def _tokenizer(toy: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(toy / "base"))


def test_rows_of_several_files_with_columns_of_their_names_are_cleaned(toy: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (toy / "data" / "demonstrations.jsonl").read_text().splitlines()]
    files = [
        str(write_rows(tmp_path / name, [{"q": row["prompt"], "a": row["completion"]} for row in part]))
        for name, part in (("one.jsonl", rows[:3]), ("two.jsonl", rows[3:]))
    ]
    output, columns = tmp_path / "cleaned.jsonl", {"prompt": "q", "completion": "a"}
    arguments: dict[str, Any] = {"policy": toy / "base", "references": [], "count": 3, "seed": 0, "columns": columns}
    listing = write_cleaned_rows(CleanSpec("random", rows=0.5), files, output, **arguments)
    left = [json.loads(line)["q"] for line in output.read_text().splitlines()]
    listed = {(row.file, row.number) for row in listing.flagged}
    assert len(listed) == 3
    numbered = [(file, number) for file, last in zip(files, (3, 5), strict=True) for number in range(1, last + 1)]
    assert left == [row["prompt"] for row, key in zip(rows, numbered, strict=True) if key not in listed]


def test_a_focus_begins_once_the_arm_that_it_depends_on_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Seed:
        configs = SimpleNamespace(arm=lambda *_: tmp_path)

        def __init__(self, *_: Any) -> None:
            pass

        def preview(self, _: Any) -> SeedPreview:
            return SeedPreview({}, None, "")

        def run(self, name: str, _: ArmSpec) -> str:
            events.append(name)
            return name

    @contextmanager
    def in_background(*_: Any, **__: Any) -> Iterator[Any]:
        yield lambda function, *arguments: Work(lambda: events.append(f"{arguments[-1]} there"), lambda: True)

    for name, value in (("SeedRun", Seed), ("run_in_background", in_background)):
        monkeypatch.setattr(experiment, name, value)
    monkeypatch.setattr(experiment, "read_config", lambda _: {"trainer": {"accelerator": "cpu"}})
    trimmed, cleaned = ArmSpec("sft", steps_multiple=1), ArmSpec("sft", steps_multiple=1, clean=CleanSpec(policy="t"))
    settings = Experiment(
        "t", tmp_path, {"t": trimmed, "c": cleaned}, [1], Recipes("toy/sft.yaml", "toy/dpr.yaml", "runs/toy"),
        prepare=lambda *_: None, commands=[], samples=1, focus="c",
    )  # fmt: skip
    experiment._run_seed(settings, tmp_path, 1)
    assert events == ["t there", "c", "sft", "t there"]


def test_arms_on_cleaned_rows_cost_what_lists_them(toy: Path, tmp_path: Path, recipes: dict[str, str]) -> None:
    arms: dict[str, Any] = {
        "cleaned_small_loss": ONCE | {"clean": {"by": "small_loss", "rows": "cleaned"}},
        "trimmed": ONCE | {"changes": {"model.init_args.trim": {"margin": 0.5, "sure": 0.0, "after": 0.0}}},
        "cleaned": ONCE | {"clean": {"policy": "trimmed", "margin": 0.48, "sure": 0.0}},
    }
    options = {"arms": arms, "data": str(toy), "output": str(tmp_path / "out"), "seeds": [1], **recipes}
    options |= {"samples": 1, "sft_steps": 4, "dpr_steps": 1, "preview_samples": 0}
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump(options, sort_keys=False))
    assert main(["compare", "--config", str(config)]) == 0
    seed = tmp_path / "out" / "seed_1"
    records = {path.stem: json.loads(path.read_text()) for path in (seed / "cleaned_rows").glob("*.json")}
    cleaned_files = {name: (seed / "cleaned_rows" / f"{name}.jsonl").read_text().splitlines() for name in records}
    listed = records["cleaned"]["listed"]
    assert records["cleaned_small_loss"]["listed"] == listed > 0
    assert [len(rows) for rows in cleaned_files.values()] == [8 - listed] * 2
    # The number of its rows takes the list of `cleaned`, and so the policy of `trimmed`, and no training of `cleaned`.
    begun, done = (seed / name for name in ("cleaned/begun.json", "cleaned_small_loss/done.json"))
    assert done.stat().st_mtime_ns < begun.stat().st_mtime_ns
    for name in cleaned_files:
        trained = yaml.safe_load((seed / "configs" / f"{name}.yaml").read_text())["data"]["init_args"]["train"]
        assert trained == str(seed / "cleaned_rows" / f"{name}.jsonl")
    flops = {
        name: arm["teraflops"]
        for name, arm in json.loads((tmp_path / "out" / "compare.json").read_text())["arms"].items()
    }
    step = {name: json.loads((seed / "flops" / f"{name}.json").read_text())["flops_of_a_step"] for name in arms}
    listing = {name: records[name]["operations"] for name in records}
    assert listing["cleaned"] == listing["cleaned_small_loss"] > 0  # one pass over all rows, by one policy
    for name in records:
        other = flops["trimmed"] * 1e12 if name == "cleaned" else 0.0
        assert flops[name] * 1e12 == pytest.approx(4 * step[name] + listing[name] + other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0.5}, "leave `rows` out"),
        ({"by": "random"}, "`rows: None`: it is a share of the rows between 0 and 1"),
        ({"by": "random", "rows": 1.0}, "`rows: 1.0`"),
        ({"by": "suspicion", "rows": 0.5, "policy": "x"}, "which only `by: refused` reads"),
        ({"by": "small_loss", "rows": 0.5, "how": "mask"}, "lists rows and no tokens"),
        ({"margin": 0.0}, "has margin 0.0 and sure 0.5"),
    ],
)
def test_options_that_nothing_follows_from(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CleanSpec(**options)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": CleanSpec(policy="b")}, "'a' has `clean.policy: b`, and 'b' is no arm"),
        ({"a": CleanSpec(policy="dpr"), "dpr": None}, "'dpr' is the `focus`"),
        ({"a": CleanSpec("random", rows="b"), "b": None}, "arm 'b' has no `clean`"),
        ({"a": CleanSpec(policy="b"), "b": CleanSpec(policy="a")}, "depends on itself: a ← b ← a"),
        ({"c": CleanSpec(policy="a"), "a": CleanSpec(policy="b"), "b": CleanSpec(policy="a")}, "depends on itself"),
    ],
)
def test_arms_that_cannot_be_cleaned(arms: dict[str, CleanSpec | None], message: str) -> None:
    specs = {
        name: ArmSpec(train="dpr") if name == "dpr" else ArmSpec(train="sft", steps_multiple=1, clean=clean)
        for name, clean in arms.items()
    }
    with pytest.raises(InputError, match=message):
        check_dependencies(specs, "dpr" if "dpr" in arms else None)


def test_cleaning_belongs_to_an_arm_that_is_trained_from_the_base() -> None:
    with pytest.raises(InputError, match="it takes `train: sft` and `steps_multiple`"):
        ArmSpec(train="dpr", clean=CleanSpec())
    with pytest.raises(InputError, match="it takes `train: sft` and `steps_multiple`"):
        ArmSpec(train="sft", clean=CleanSpec())
