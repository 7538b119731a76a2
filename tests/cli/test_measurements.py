"""The seeds that docs/measurements keeps are those of the comparison that the repository holds."""

import json
from pathlib import Path

import pytest
import yaml

from dpr_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
OF_SPELLING = ["--task", "spelling", "--title", "Short words backwards, 400 demonstrations"]


@pytest.mark.parametrize(
    ("folder", "recipe", "options"),
    [("addition", "toy", []), ("spelling", "toy", OF_SPELLING), ("ahead", "ahead", [])],
)
def test_kept_seeds_are_pooled(folder: str, recipe: str, options: list[str], tmp_path: Path) -> None:
    kept = ROOT / "docs" / "measurements" / folder
    seeds = sorted(int(file.stem.removeprefix("seed_")) for file in kept.glob("seed_*.json"))
    config = ROOT / "configs" / "compare" / f"{recipe}.yaml"
    arguments = [*options, "--seeds", json.dumps(seeds), "--pool", json.dumps([str(kept)]), "--output", str(tmp_path)]
    assert main(["compare", "--config", str(config), *arguments]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["seeds"] == seeds
    assert set(found["arms"]) == {"sft", *yaml.safe_load(config.read_text())["arms"]}
    gain = found["arms"]["dpr"]["sampled"] - found["arms"]["sft"]["sampled"]
    assert found["paired"]["dpr - sft"]["sampled"]["difference"] == pytest.approx(gain)
