"""The scoreboard measures what it says, and runs; the peers' side needs a separate environment (`make bench`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from benchmarks.scoreboard import gate, report, run
from benchmarks.scoreboard.material import write_material
from benchmarks.scoreboard.workloads import CPU, GPU, SHAPES, Workload, least_operations


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
    for work, ratio in ((CPU["dpr"], 1.6), (GPU["dpr"], 1.2)):
        late = work.prompt + work.completion / 2
        decoding = work.rows * work.completion * SHAPES[work.shape].forward(context=late, scored=1.0)
        assert 1.0 < least_operations(work) / (6 * decoding) < ratio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "works"),
    [([], CPU), (["--gpu", "--rows", "16", "--workloads", "sft", "decode", "--minutes", "0"], GPU)],
)
def test_it_runs_and_reports(
    options: list[str], works: dict[str, Workload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, page = tmp_path / "results.json", tmp_path / "performance.md"
    rounds = ["--shape", "tiny", "--warmups", "1", "--repeats", "1" if works is CPU else "3", *options]
    files = ["--folder", str(tmp_path / "bench"), "--output", str(results)]
    monkeypatch.setattr("sys.argv", ["run", *rounds, *files, "--sides", "ours"])
    run.main()
    measured = json.loads(results.read_text())
    before = "" if works is CPU else "gpu_"
    kinds = list(CPU) if works is CPU else ["sft", "decode"]
    assert list(measured) == [before + kind for kind in kinds]
    gates = measured[f"{before}sft"]["gate"].values()
    assert all(gate["gradient_cosine"] > 0.999 and gate["loss_distance"] < 1e-3 for gate in gates)
    # Time is up at once: one round that counts is left.
    assert {len(result["turns"]["ours"]) for result in measured.values()} == {2}
    page.write_text(f"# Speed\n\nBefore.\n{report.BEGIN}\nold\n{report.END}\nAfter.\n")
    monkeypatch.setattr("sys.argv", ["report", "--results", str(results), "--page", str(page)])
    report.main()
    text = page.read_text()
    assert "old" not in text
    assert "Before." in text
    assert "After." in text
    assert all(f"### {work.title}" in text for work in (works[kind] for kind in kinds))


def test_a_gpu_is_asked_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["run", "--gpu"])
    with pytest.raises(SystemExit):
        run.main()
    assert "PyTorch sees none here" in capsys.readouterr().err


def test_a_gpu_tells_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued there is at work when the program has gone on."""

    class Event:
        def elapsed_time(self, end: Any) -> float:
            return 1500.0 if end is not self else 0.0

    waited: list[bool] = []
    monkeypatch.setattr(gate, "_event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waited.append(True))
    assert gate.Clock().seconds() == 1.5
    assert waited == [True]
