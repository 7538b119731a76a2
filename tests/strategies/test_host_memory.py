"""No rank of a policy in shards has all of it in memory while it is read."""

import json
from pathlib import Path

import pytest

from dpr_lightning.policies import create_toy_policy
from tests.strategies.launch import run_ranks


@pytest.mark.parametrize("strategy", ["zero3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_rank_reads_its_share(strategy: str, tmp_path: Path) -> None:
    """Its half, and an eighth at most for weights that are whole for a moment and what is imported meanwhile."""
    folder = create_toy_policy(tmp_path / "policy", ["ab1"], hidden_size=1024, layers=6)
    file_size = (folder / "model.safetensors").stat().st_size
    assert file_size > 250e6
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b1"}) + "\n")
    command = ["tests.strategies.host_memory", strategy, str(folder), str(tmp_path / "peak")]
    run_ranks(command, 2, tmp_path / "logs", {"OMP_NUM_THREADS": "1"})
    for rank in range(2):
        peak, gathering = map(int, (tmp_path / f"peak.{rank}").read_text().split())
        print(strategy, rank, peak / file_size, gathering / file_size)
        assert file_size / 2 <= peak + 5e6
        assert peak <= file_size * (1 / 2 + 1 / 8)
        # The first rank keeps the whole model; the other helps, with one weight at a time.
        assert gathering <= file_size * ((1 if rank == 0 else 0) + 1 / 8)
