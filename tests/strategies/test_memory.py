"""What `dpr plan` counts for a rank of two, against what the rank really takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.cli.plan_command import plan
from tests.strategies.launch import run_ranks
from tests.tiny import write_tiny_policy
from tests.training import write_weaker_policy
from tests.workspace import Workspace, write_dpr_config, write_sft_config

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
IN_EVERY_RUN = {("zero3", "32-true")}


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


ASKED_IN_SHARDS = {"sampling_weights": "shards"}
ROLLOUTS: list[tuple[str, dict[str, Any], str, int]] = [
    ("ddp", {}, "whole", 1),
    ("ddp", {}, "shards", 1),
    ("zero3", {}, "whole", 1),
    # DeepSpeed fetches ahead in the second micro-batch.
    ("zero3", {}, "whole", 2),
    ("zero3", ASKED_IN_SHARDS, "shards", 1),
    ("fsdp2", {}, "whole", 1),
    ("fsdp2", ASKED_IN_SHARDS, "shards", 1),
]


@pytest.mark.parametrize(
    ("strategy", "options", "frozen", "accumulate"),
    [case if case[::2] == ("ddp", "shards") else pytest.param(*case, marks=pytest.mark.slow) for case in ROLLOUTS],
)
def test_a_rank_that_samples_takes_what_is_planned(
    strategy: str, options: dict[str, Any], frozen: str, accumulate: int, tmp_path: Path
) -> None:
    """Weights are most of it: those of the policy, brought together or not, and of the frozen models."""
    write_tiny_policy(tmp_path / "sft", hidden_size=128, layers=6)
    write_weaker_policy(tmp_path / "sft", tmp_path / "reference")
    rows = str(tmp_path / "rows.jsonl")
    Path(rows).write_text("".join(json.dumps({"prompt": chr(97 + n), "completion": "1"}) + "\n" for n in range(16)))
    workspace = Workspace(str(tmp_path / "sft"), str(tmp_path / "reference"), rows, rows)
    sampling = {"max_new_tokens": 12}
    config = Path(write_dpr_config(tmp_path, workspace, max_prompt_length=1, sampling=sampling, frozen_weights=frozen))
    settings = yaml.safe_load(config.read_text())
    entry: Any = STRATEGIES[strategy]
    if options:
        entry = entry | {"init_args": entry["init_args"] | options}
    settings["trainer"] |= {"strategy": entry, "devices": 2, "accumulate_grad_batches": accumulate}
    config.write_text(yaml.safe_dump(settings))
    run_ranks(["tests.strategies.memory", str(config), str(tmp_path / "peak")], 2, tmp_path / "logs")
    measured, planned = int((tmp_path / "peak.0").read_text()), plan(["--config", str(config)])
    assert planned.peak == pytest.approx(measured, rel=0.1)
