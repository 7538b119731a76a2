"""Frozen models in shards, and policies that are sampled from in shards: the steps of one process."""

from pathlib import Path

import pytest

from tests.strategies.parity import difference, moved, steps, trained, write_inputs

WHOLE, PARTS = "dpr_frozen_in_shards:1", "dpr_frozen_in_shards:3"
STRATEGIES = [
    ("zero3_asked_in_shards", [PARTS]),
    *(
        pytest.param(name, [WHOLE, PARTS], marks=pytest.mark.slow)
        for name in ("ddp", "zero3_asked_in_shards", "fsdp2_asked_in_shards")
    ),
]


@pytest.mark.parametrize(("strategy", "cases"), STRATEGIES)
def test_ranks_that_need_different_numbers_of_passes_stay_in_step(
    strategy: str, cases: list[str], tmp_path: Path
) -> None:
    """Answers end early on one rank and late on the other; what differs in length is scored in different parts."""
    folder = write_inputs(tmp_path)
    one, several = trained("one", folder, cases), trained(strategy, folder, cases)
    for case in cases:
        assert difference(one, several, case) < 1e-6, case
        assert moved(one, case) > 1e-3
        for here, there in zip(steps(one, case), steps(several, case), strict=True):
            assert there["train/loss"] == pytest.approx(here["train/loss"], rel=1e-5, abs=1e-6)
    log = (folder / "logs" / strategy / "rank_0.log").read_text()
    assert "π_SFT and its references: in shards, for the option says so" in log
    assert ("The policy to sample: in shards" in log) == strategy.endswith("asked_in_shards")
