"""Training steps counted against what they must cost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dpr_lightning.cli.flops import flops_of_a_step
from dpr_lightning.policies import PolicySpec, build_policy
from tests.workspace import Workspace, write_rows


def test_a_step_of_sft_is_three_passes(sft_config: Callable[..., str], workspace: Workspace, tmp_path: Path) -> None:
    """A forward pass takes 2 operations a weight and token; the head only reads where there is something to learn."""
    rows = [{"prompt": "1 + 1 =", "completion": "Answer: 2"}] * 8
    config = sft_config(write_rows(tmp_path / "rows.jsonl", rows), batch_size=4)
    model, tokenizer = build_policy(PolicySpec(source=workspace.sft))
    prompt, answer = len(tokenizer("1 + 1 =")["input_ids"]), len(tokenizer("Answer: 2")["input_ids"]) + 1
    head = model.config.vocab_size * model.config.hidden_size  # type: ignore[union-attr]
    body = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2) - head
    expected = 3 * 2 * 4 * (body * (prompt + answer) + head * answer)
    # Attention's own products are beside that, and the first layer needs no gradient for its input.
    assert flops_of_a_step(Path(config)) == pytest.approx(expected, rel=0.15)
