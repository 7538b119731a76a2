"""Two tiny policies, and the dense reward between them."""

from pathlib import Path

import pytest

from dpr_lightning import DenseReward, RewardSpec
from tests.training import write_weaker_policy


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_policy_folder: Path) -> tuple[str, str]:
    """Folders of π_SFT and of a reference."""
    reference = write_weaker_policy(tiny_policy_folder, tmp_path_factory.mktemp("reference") / "policy")
    return str(tiny_policy_folder), reference


@pytest.fixture(scope="session")
def reward(folders: tuple[str, str]) -> DenseReward:
    """The published form, which is positive and negative."""
    return DenseReward.from_folders(folders[0], [folders[1]], RewardSpec("log_ratio"))
