"""The script that tries a GPU, where there may be none."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gpu_script_runs_without_one(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_smoke.py", "--shapes", "tiny", "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    table = (tmp_path / "out" / "result.md").read_text()
    assert table.count("| tiny | sft | ") == 5
    assert table.count("| tiny | dpr | ") == 4
    assert "failed" not in table
