"""The commands and the Python of every page are run as they are on the page, on small models and data."""

import os
import shlex
import shutil
import string
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning.policies import create_toy_policy
from tests.fork_server import server
from tests.pages.blocks import PAGES, ROOT, Block, blocks
from tests.pages.run_pages import write_error_of_page
from tests.test_python_pages import LESS as PYTHON_PAGES
from tests.test_readme import PAGES as COMMAND_PAGES
from tests.training import write_weaker_policy
from tests.workspace import write_rows

# Added to a command to make it cheap. Nothing else is changed, so a wrong path or option fails.
LESS = {
    "sft": "--epochs 1 --set run.wandb=off",
    "check": "--prompts 4 --samples 2 --max_new_tokens 8",
    "rl": "--steps 1 --set run.wandb=off",
    "fit": "--trainer.max_steps=1 --trainer.enable_progress_bar=false --trainer.limit_val_batches=1 --run.wandb=off",
    "best_of": "--samples 2 --limit 4 --max_new_tokens 8",
    "preview": "--samples 2 --limit 4 --max_new_tokens 8",
    "audit": "--samples 2 --limit 16 --max_new_tokens 8",
    "generate": "--limit 4 --max_new_tokens 8",
    "evaluate": "--limit 4 --max_new_tokens 8",
    "rewards": "--limit 4",
    "pairs": "--limit 16 --max_new_tokens 8 --batch_size 32",
}
CODES = {"audit": (0, 3), "check": (0, 3, 4), "rl": (0, 3), "preview": (0, 4)}
"""Exit codes that say whether a reward is worth training on, which on so small a policy it need not be."""
SLOW = {"docs/compare.md", "docs/reliability.md", "docs/scaling.md"}
"""Pages whose commands other tests run too."""
STEPS = (100, 200, 300)


def name_of(page: Path) -> str:
    """``docs/data.md``."""
    return str(page.relative_to(ROOT))


def runs_elsewhere(page: Path, block: Block) -> bool:
    """Whether another file of tests runs the block."""
    return (block.language == "python" and page.name in PYTHON_PAGES) or (
        block.language == "bash" and name_of(page) in COMMAND_PAGES
    )


def steps_of(page: Path) -> list[dict[str, Any]]:
    """What is run of a page."""
    steps: list[dict[str, Any]] = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if not block.is_run or runs_elsewhere(page, block):
            continue
        if block.file:
            steps.append({"line": block.line, "file": block.file, "code": block.code})
        elif block.language == "python":
            steps.append({"line": block.line, "code": block.code})
        elif block.language == "bash":
            for command in block.commands:
                if command[0] == "PYTHONPATH=.":
                    command = command[1:]
                arguments = [*command[1:], *shlex.split(LESS.get(command[1], ""))]
                steps.append({"line": block.line, "arguments": arguments, "codes": CODES.get(command[1], (0,))})
    return steps


STEPS_OF = {name_of(page): steps_of(page) for page in PAGES}
RUN = [page for page, steps in STEPS_OF.items() if any("file" not in step for step in steps)]


@pytest.fixture(scope="module")
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The error of each page that is tested in this session, by its name; empty where everything ran."""
    selected = {item.callspec.params["page"] for item in request.session.items if "errors" in item.fixturenames}
    layout = make_layout(tmp_path_factory.mktemp("pages") / "layout")
    result = {}
    for number, page in enumerate(sorted(selected)):
        folder = layout.with_name(f"page_{number}")
        shutil.copytree(layout, folder, symlinks=True)
        error, log = (folder.with_suffix(suffix) for suffix in (".error", ".log"))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        steps = STEPS_OF[page]
        process = server().start(
            write_error_of_page, str(folder), steps, error, environment=environment, folder=folder, log=log
        )
        process.wait(900)
        result[page] = error.read_text() if error.is_file() else f"the page ended its process: {log.read_text()}"
    return result


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in RUN], ids=RUN
)
def test_a_page_runs(page: str, errors: dict[str, str]) -> None:
    assert not errors[page], errors[page]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "bash" and block.is_run:
            commands = [command[1:] if command[0] == "PYTHONPATH=." else command for command in block.commands]
            strangers = {command[0] for command in commands} - {"dpr"}
            assert not strangers, f"line {block.line} runs {strangers}: write `<!-- not run: REASON -->` before it"


def make_layout(folder: Path) -> Path:
    """A user's folder: a model, a file of rows, a run of TRL's and the toy run, with policies that are not trained."""
    base = create_toy_policy(
        folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct", [string.printable], hidden_size=32, layers=1, heads=2
    )
    sums = [(a, b) for a in range(12) for b in range(8)]
    write_rows(folder / "mine.jsonl", [sum_row(a, b) for a, b in sums])
    (folder / "more").mkdir()
    for start, name in ((20, "more/new.jsonl"), (40, "validation.jsonl")):
        write_rows(folder / name, [sum_row(a + start, b) for a, b in sums[:32]])
    for step, noise in ((125, 0.05), (500, 0.01)):
        write_weaker_policy(base, folder / "my-sft" / f"checkpoint-{step}", noise=noise)
    toy = folder / "runs" / "toy"
    shutil.copytree(base, toy / "base")
    for index, step in enumerate(STEPS):
        write_weaker_policy(base, toy / "sft" / "policies" / f"step_{step:07}", noise=0.05 / (index + 1))
    for stage in ("sft", "dpr"):
        write_weaker_policy(base, toy / stage / "policies" / "final", noise=0.01)
    (toy / "data").mkdir()
    for index, split in enumerate(("demonstrations", "prompts", "development", "test")):
        rows = [sum_row(a + 20 * index, b) for a, b in sums[:64]]
        write_rows(toy / "data" / f"{split}.jsonl", rows)
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def sum_row(first: int, second: int) -> dict[str, str]:
    """A demonstration of a sum, with what verifiers compare."""
    result = str(first + second)
    return {"prompt": f"{first} + {second} =", "completion": f"Answer: {result}", "answer": result}
