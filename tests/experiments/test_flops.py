"""Training steps counted against what they must cost."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.engine import half_precision as attention
from dpr_lightning.engine import master_weights
from dpr_lightning.errors import InputError
from dpr_lightning.experiments.flops import FlopSum, flops_of_a_step
from dpr_lightning.policies import PolicySpec, build_policy
from tests.workspace import Workspace, write_rows, write_sft_config


def test_a_step_of_sft_is_three_passes(
    sft_config: Callable[..., str], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass takes 2 operations a weight and token; the head only reads where there is something to learn."""
    rows = [{"prompt": "1 + 1 =", "completion": "Answer: 2"}] * 8
    rows_file = write_rows(tmp_path / "rows.jsonl", rows)
    config = sft_config(rows_file, batch_size=4)
    model, tokenizer = build_policy(PolicySpec(source=workspace.sft))
    prompt, answer = len(tokenizer("1 + 1 =")["input_ids"]), len(tokenizer("Answer: 2")["input_ids"]) + 1
    head = model.config.vocab_size * model.config.hidden_size  # type: ignore[union-attr]
    body = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2) - head
    expected = 3 * 2 * 4 * (body * (prompt + answer) + head * answer)
    # Attention's own products are beside that, and the first layer needs no gradient for its input.
    result = flops_of_a_step(Path(config))
    assert result == pytest.approx(expected, rel=0.15)
    # Weights in half precision are stepped by an optimizer within another; their attention by blocks costs less.
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: False)
    half = {"source": workspace.sft, "dtype": "bfloat16"}
    config = write_sft_config(tmp_path, half, rows_file, batch_size=4)
    monkeypatch.setattr(master_weights, "_AT_ONCE", 1)  # in as many parts as there are weights
    assert flops_of_a_step(Path(config)) == pytest.approx(result, rel=1e-6)


def test_one_step_says_nothing_of_a_step(sft_config: Callable[..., str], workspace: Workspace, tmp_path: Path) -> None:
    rows_file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1 + 1 =", "completion": "Answer: 2"}])
    with pytest.raises(InputError, match="takes 1 optimizer steps"):
        flops_of_a_step(Path(sft_config(rows_file, batch_size=4, trainer={"max_epochs": 1})))


def test_operations_are_those_of_pytorchs_counter(workspace: Workspace) -> None:
    model, _ = build_policy(PolicySpec(source=workspace.sft))
    tokens = torch.arange(20).reshape(2, 10)

    def work() -> None:
        model(input_ids=tokens).logits.sum().backward()
        with torch.inference_mode():
            torch.nn.functional.linear(torch.ones(2, 3, 4), torch.ones(5, 4)) @ torch.ones(5, 6)

    with FlopCounterMode(display=False) as counter:
        work()
    with FlopSum() as result:
        work()
    assert result.total == counter.get_total_flops() > 0
