"""The scoreboard measures what it says, and runs; the peers' side needs an environment of its own (`make bench`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from benchmarks.scoreboard import report, run
from benchmarks.scoreboard.material import write_material
from benchmarks.scoreboard.workloads import SHAPES, WORKLOADS, least_operations


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("material")
    write_material(folder, SHAPES["tiny"], {}, 1)
    # Products in the open: the counter knows no fused attention on a CPU.
    return LlamaForCausalLM.from_pretrained(folder / "sft", attn_implementation="eager")


def test_operations_are_those_of_the_model(policy: Any) -> None:
    rows, length, scored = 4, 96, 32
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(input_ids=tokens, logits_to_keep=scored, use_cache=False)
    # Attention is to whole rows here, whatever a mask leaves.
    expected = rows * length * SHAPES["tiny"].forward(context=length, scored=scored / length)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-9)


def test_a_step_of_policy_gradients_takes_six_forward_passes() -> None:
    shape, work = SHAPES["smollm2_135m"], WORKLOADS["dpr"]
    written = work.rows * work.completion * shape.forward(context=96, scored=1.0)
    assert 1.0 < least_operations("dpr", work, shape) / (6 * written) < 1.6


def test_it_runs_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, page = tmp_path / "results.json", tmp_path / "performance.md"
    rounds = ["--shape", "tiny", "--warmups", "1", "--repeats", "1"]
    files = ["--folder", str(tmp_path / "bench"), "--output", str(results)]
    monkeypatch.setattr("sys.argv", ["run", *rounds, *files, "--sides", "ours"])
    run.main()
    measured = json.loads(results.read_text())
    assert list(measured) == list(WORKLOADS)
    assert all(gate["gradient_cosine"] > 0.999 for gate in measured["sft"]["gate"].values())
    assert all(gate["loss_distance"] < 1e-3 for gate in measured["sft"]["gate"].values())
    page.write_text(f"# Speed\n\nBefore.\n{report.BEGIN}\nold\n{report.END}\nAfter.\n")
    monkeypatch.setattr("sys.argv", ["report", "--results", str(results), "--page", str(page)])
    report.main()
    written = page.read_text()
    assert "old" not in written
    assert "Before." in written
    assert "After." in written
    assert all(f"### {work.title}" in written for work in WORKLOADS.values())
