"""What `dpr plan` counts for a rank of two, against what the rank really takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning.cli.plan import plan
from tests.strategies.launch import run_ranks
from tests.tiny import write_tiny_policy
from tests.workspace import write_sft_config

SMALL_BUCKETS = {"bucket_size": 50_000}


def _ours(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"dpr_lightning.strategies.{name}", "init_args": options}


STRATEGIES = {
    "ddp": "ddp",
    "zero1": _ours("Zero1Strategy", **SMALL_BUCKETS),
    "zero2": _ours("Zero2Strategy", **SMALL_BUCKETS),
    "zero3": _ours("Zero3Strategy", **SMALL_BUCKETS, persistence_threshold=0),
    "fsdp2": _ours("Fsdp2Strategy"),
}
CASES = [(name, precision) for name in STRATEGIES for precision in ("32-true", "bf16-mixed")]
IN_EVERY_RUN = {("zero3", "32-true"), ("fsdp2", "32-true")}


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [case if case in IN_EVERY_RUN else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_a_rank_takes_what_is_planned(strategy: str, precision: str, tmp_path: Path) -> None:
    """So few tokens that weights, gradients and optimizer are most of it."""
    write_tiny_policy(tmp_path / "sft", hidden_size=128, layers=6)
    rows = [{"prompt": chr(97 + n), "completion": "1" * 30} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = {"hidden_size": 128, "intermediate_size": 336, "num_hidden_layers": 6, "num_attention_heads": 2}
    config = write_sft_config(
        tmp_path,
        {"architecture": {"model_type": "llama", **shape}, "tokenizer": str(tmp_path / "sft")},
        str(tmp_path / "rows.jsonl"),
        trainer={"strategy": STRATEGIES[strategy], "devices": 2, "precision": precision},
        max_length=32,
        batch_size=2,
    )
    run_ranks(["tests.strategies.memory", config, str(tmp_path / "peak")], 2, tmp_path / "logs")
    measured, planned = int((tmp_path / "peak.0").read_text()), plan(["--config", config])
    assert planned.peak == pytest.approx(measured, rel=0.1)
