"""The small folder that commands are tried on, as fixtures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workspace import Workspace, make_workspace, write_dpr_config, write_sft_config


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def sft_config(tmp_path: Path, workspace: Workspace) -> Callable[..., str]:
    """Writes an SFT config that trains two steps on a data file."""

    def write(train: str, source: str = workspace.sft, **data: Any) -> str:
        return write_sft_config(tmp_path, {"source": source}, train, **data)

    return write


@pytest.fixture
def dpr_config(tmp_path: Path, workspace: Workspace) -> Callable[..., str]:
    """Writes a DPR config that trains two steps."""

    def write(policy: str = workspace.sft, model: dict[str, Any] | None = None, **data: Any) -> str:
        return write_dpr_config(tmp_path, workspace, policy, model, **data)

    return write


@pytest.fixture
def case(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of the workspace's policies and data, which is the working directory."""
    for name in ("sft", "reference"):
        shutil.copytree(getattr(workspace, name), tmp_path / name)
    for name in ("prompts", "demonstrations"):
        shutil.copy(getattr(workspace, name), tmp_path / f"{name}.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path
