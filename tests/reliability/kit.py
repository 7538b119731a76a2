"""Cases of wrong input: how their files are built, and how `dpr` is run on them."""

import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from dpr_lightning.cli.main import main
from tests.workspace import Workspace, write_dpr_config, write_rows, write_sft_config

GOOD = {"prompt": "1 + 1 =", "completion": "Answer: 2"}
"""A row without faults."""


class Kit(NamedTuple):
    """A folder to make a case in, and a healthy workspace beside it."""

    folder: Path
    workspace: Workspace

    def rows(self, *rows: Any, **options: Any) -> list[str]:
        """`dpr fit` on a file of these rows."""
        return self.fit(write_rows(self.folder / "data.jsonl", list(rows)), **options)

    def bytes(self, content: bytes, name: str = "data.jsonl") -> list[str]:
        """`dpr fit` on a file with this content."""
        (self.folder / name).write_bytes(content)
        return self.fit(str(self.folder / name))

    def fit(self, train: Any = None, policy: dict[str, Any] | None = None, **options: Any) -> list[str]:
        """`dpr fit` with an SFT config."""
        spec = policy if policy is not None else {"source": self.workspace.sft}
        path = write_sft_config(self.folder, spec, train or self.workspace.demonstrations, **options)
        return ["fit", "--config", path]

    def dpr(self, **options: Any) -> list[str]:
        """`dpr fit` with a DPR config."""
        return ["fit", "--config", write_dpr_config(self.folder, self.workspace, **options)]

    def policy(self) -> Path:
        """A copy of the policy, to be damaged."""
        return Path(shutil.copytree(self.workspace.sft, self.folder / "policy"))

    def config(self, text: str) -> list[str]:
        """`dpr fit` with a config of this text."""
        (self.folder / "run.yaml").write_text(text)
        return ["fit", "--config", str(self.folder / "run.yaml")]


class Case(NamedTuple):
    """A wrong input: how to make it, and words that the message has to have."""

    make: Callable[[Kit], list[str]]
    says: tuple[str, ...]


class Answer(NamedTuple):
    """Exit code and message of `dpr`, and the files that it left."""

    code: int
    message: str
    left: set[str]


def run_case(case: Case, folder: Path, workspace: Workspace) -> Answer:
    """What `dpr` says to a case, made in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments, stream = case.make(Kit(folder, workspace)), StringIO()
    before = _files(folder)
    with redirect_stderr(stream):
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    message = stream.getvalue()
    # Warnings come before. Lightning notes what it was asked to do.
    left = _files(folder) - before - {"config.yaml"}
    return Answer(code, message[message.rfind("\ndpr ") + 1 :].strip(), left)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}
