"""Experiments of tests count the cost of a step over few steps."""

import pytest

from dpr_lightning.experiments import flops


@pytest.fixture(autouse=True)
def few_counted_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are counted where a test is not about counting."""
    if request.module.__name__.rpartition(".")[2] != "test_flops":
        monkeypatch.setattr(flops, "STEPS", 3)
