"""The seeds that docs/measurements keeps are those of the comparison that the repository holds."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
OF_SPELLING = ["--task", "spelling", "--title", "Short words backwards, 400 demonstrations"]
MARKS = {"better": "▲", "no detectable difference": "≈", "worse": "▼"}


@pytest.mark.parametrize(
    ("folder", "recipe", "options", "arm"),
    [
        ("addition", "docs/measurements/toy.yaml", [], "dpr"),
        ("spelling", "docs/measurements/toy.yaml", OF_SPELLING, "dpr"),
        ("ahead", "configs/compare/ahead.yaml", [], "dpr"),
        ("noisy", "configs/compare/noisy.yaml", [], "trimmed"),
        ("trim_weight", "configs/compare/trim_weight.yaml", [], "w01"),
    ],
)
def test_kept_seeds_are_pooled(
    folder: str, recipe: str, options: list[str], arm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = ROOT / "docs" / "measurements" / folder
    seeds = sorted(int(file.stem.removeprefix("seed_")) for file in saved.glob("seed_*.json"))
    config = ROOT / recipe
    arguments = [*options, "--seeds", json.dumps(seeds), "--pool", json.dumps([str(saved)]), "--output", str(tmp_path)]
    assert main(["compare", "--config", str(config), *arguments]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "compare.json").read_text())
    assert result["seeds"] == seeds
    assert set(result["arms"]) == {"sft", *yaml.safe_load(config.read_text())["arms"]}
    gain = result["arms"][arm]["sampled"] - result["arms"]["sft"]["sampled"]
    assert result["paired"][f"{arm} - sft"]["sampled"]["difference"] == pytest.approx(gain)
    if folder == "noisy":  # as docs/noisy.md and the README have it
        entry = result["paired"]["trimmed - sft"]["greedy"]
        assert [round(entry[key], 3) for key in ("difference", "low", "high")] == [0.226, 0.138, 0.314]
        assert entry["verdict"] == "better"
        return
    expect_one_verdict_everywhere(tmp_path, result["paired"], printed)
    if folder == "addition":  # its interval leaves out 0, and among 36 arms that is no proof
        entry = result["paired"]["dpr_published_fast - sft"]["sampled"]
        assert entry["high"] < 0
        assert entry["p_value"] < 0.05 < entry["p_holm"]
        assert entry["verdict"] == "no detectable difference"
        runpy.run_path(str(ROOT / "benchmarks" / "compare_table.py"))["main"](str(tmp_path / "compare.json"))
        assert "| dpr_published_fast | 0.493 | 0.431 | -0.185 [" in capsys.readouterr().out  # not bold


def expect_one_verdict_everywhere(folder: Path, paired: dict[str, dict[str, dict[str, Any]]], printed: str) -> None:
    """The verdicts of compare.json on the console, on the page and in W&B's table."""
    verdicts = {(pair, key): entry["verdict"] for pair, row in paired.items() for key, entry in row.items()}
    for verdict, mark in MARKS.items():
        assert len(re.findall(f"{mark} {verdict.split()[0]}", printed)) == list(verdicts.values()).count(verdict)
    page = (folder / "report.html").read_text()
    assert sorted(re.findall(r'<b class="\w+">(.)', page)) == sorted(MARKS[verdict] for verdict in verdicts.values())
    for key in ("sampled", "greedy"):
        names = ", ".join(re.findall(rf"{key.capitalize()} answers, better than SFT: (.*?)\.</p>", page))
        assert names.count("(") == [name for pair, name in verdicts.items() if pair[1] == key].count("better")
    (file,) = folder.rglob("media/table/paired*.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {(row["comparison"], row["measure"]): row["verdict"] for row in rows} == verdicts
