"""SCAN: commands in words to sequences of actions, from the released files. Lake and Baroni 2018, arXiv:1711.00350."""

from pathlib import Path
from typing import Any

import numpy as np

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import ANSWER_MARKER


def read_scan(path: str | Path) -> list[dict[str, Any]]:
    """Rows ``{"prompt", "completion", "answer"}`` of a file of ``IN: … OUT: …`` lines, each prompt once.

    Raises:
        InputError: the file is missing, or a line is of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}. SCAN's are at https://github.com/brendenlake/SCAN.")
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        command, separator, actions = line.removeprefix("IN: ").partition(" OUT: ")
        if not (line.startswith("IN: ") and separator and command.strip() and actions.strip()):
            raise InputError(f"{path}:{number} is {line[:60]!r} and not `IN: command OUT: actions`.")
        prompt = f"{command.strip()} ="
        rows[prompt] = {"prompt": prompt, "completion": f"{ANSWER_MARKER} {actions.strip()}", "answer": actions.strip()}
    return list(rows.values())


def split_rows(rows: list[dict[str, Any]], sizes: dict[str, int], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Disjoint random splits of rows, in the order of ``sizes``.

    Raises:
        InputError: there are fewer rows than the sum of the sizes.
    """
    total = sum(sizes.values())
    if total > len(rows):
        raise InputError(f"The splits {sizes} take {total} rows, and there are {len(rows)}. Ask for fewer.")
    order = iter(np.random.default_rng(seed).permutation(len(rows)).tolist())
    return {name: [rows[next(order)] for _ in range(count)] for name, count in sizes.items()}
