"""What runs under strategies read, and how what they leave is compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.strategies.launch import run_ranks
from tests.tiny import write_tiny_policy
from tests.training import write_weaker_policy


def write_inputs(folder: Path) -> Path:
    """A policy, a weaker one, and 14 rows of uneven length."""
    write_tiny_policy(folder / "policy")
    write_weaker_policy(folder / "policy", folder / "reference")
    rows = [
        {"prompt": f"{n} {sign} {n} =", "completion": "Answer: " + "9" * (1 + 3 * (n % 4))}
        for sign, count in (("+", 11), ("*", 3))
        for n in range(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained(strategy: str, folder: Path, cases: Sequence[str]) -> Path:
    """Run the cases that have not run yet: in one process for the strategy ``one``, on two ranks for any other."""
    output = folder / strategy
    if left := [case for case in cases if not (output / f"{case}.json").exists()]:
        command = ["tests.strategies.worker", strategy, str(folder), *left]
        run_ranks(command, 1 if strategy == "one" else 2, folder / "logs" / strategy, timeout=600)
    return output


def steps(run: Path, case: str) -> list[dict[str, Any]]:
    """What was logged at each step."""
    result: list[dict[str, Any]] = json.loads((run / f"{case}.json").read_text())["steps"]
    return result


def moved(run: Path, case: str) -> float:
    """By how much training changed the weights, relative to their size."""
    before, after = load_file(run.parent / "policy" / "model.safetensors"), load_file(run / f"{case}.safetensors")
    return norm({name: after[name] - before[name] for name in after}) / norm(after)


def norm(weights: dict[str, torch.Tensor]) -> float:
    """Euclidean norm of all weights."""
    return float(torch.cat([value.flatten().double() for value in weights.values()]).norm())


def difference(first: Path, second: Path, case: str) -> float:
    """Of all weights, relative to their size."""
    one, other = (load_file(run / f"{case}.safetensors") for run in (first, second))
    assert one.keys() == other.keys()
    return norm({name: other[name].double() - one[name].double() for name in one}) / norm(one)
