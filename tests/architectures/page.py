"""The page of architectures, made from what was tried."""

import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.architectures.abilities import COLUMNS, abilities
from tests.architectures.registry import TINY

INTRODUCTION = """# Architectures

What was tried with a tiny random model of each architecture of transformers {version}, in float32 on a CPU. The table
is made by `python -m tests.architectures docs/architectures.md`; tests try every cell again and
compare: eleven rows in `make test`, all of them in `make test-slow`.

- **SFT**: the loss of padded rows is that of each row on its own, and gradients are finite. `eager`: transformers has
  no `sdpa` for it.
- **LoRA**: adapters on all linear layers have gradients.
- **sample**: answers are decoded with this package's cache; or with *the library's cache*, prompts of one length at a
  time; or *without a cache*, where every token reads its whole row again, which is slow. `dpr fit` says at its start
  which of these is used when it is not the first.
- **score**: log-probabilities of several rows together are those of each row alone, to 1e-5; and those that the rows
  were sampled with, to 1e-5 or what is said. Where 0.001 is said, transformers bounds a time step when it reads a
  prompt and not when it decodes.
- **DPR**: a policy-gradient step on sampled rows that a frozen copy has scored. *Shared prompts*: a prompt with several
  answers is read once.
- **plan**: `dpr plan` counts the memory of a step and of sampling.
- **export**: the saved folder gives the same logits in plain transformers.

Not promised: sizes, options and kernels for GPUs that were not tried here, and models whose code comes with their
weights. For those, `dpr fit` tries at its start how the policy is sampled. With weights in shards it does not: there
models with recurrent layers are sampled without a cache.
"""


def row_of(kind: str) -> dict[str, str]:
    """A row, tried in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return abilities(kind, Path(folder))


def rows() -> dict[str, dict[str, str]]:
    """All rows, tried one after the other."""
    return {kind: row_of(kind) for kind in TINY}


def page(cells_of: dict[str, dict[str, str]]) -> str:
    """The page with these rows."""
    lines = [INTRODUCTION.format(version=version("transformers")), "| architecture | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for kind, cells in cells_of.items():
        lines.append(f"| {kind} | " + " | ".join(cells[column] for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def read_rows(text: str) -> dict[str, dict[str, str]]:
    """The rows of a page."""
    lines = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): dict(zip(COLUMNS, cells[1:], strict=True)) for cells in lines[1:]}
