"""Metrics and predictions of the imitation module against one plain pass over the data."""

import json
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from transformers import AutoModelForCausalLM

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec, load_tokenizer

Trainers = Callable[..., lightning.Trainer]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"{n} + 1 =", "completion": "Answer: " + "9" * (1 + n)} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def truth(rows: str, tiny_policy_folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """log-probability and rightness of each demonstrated token of each row, one row at a time."""
    tokenizer = load_tokenizer(str(tiny_policy_folder))
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    result = []
    for line in Path(rows).read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        tokens = torch.tensor(answer)
        result.append((logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1), logits.argmax(-1) == tokens))
    return result


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_metrics_are_weighted_by_tokens(
    batch_size: int, rows: str, truth: list[tuple[torch.Tensor, torch.Tensor]], tiny_policy_folder: Path,
    trainer: Trainers, tmp_path: Path,
) -> None:  # fmt: skip
    data = DemonstrationDataModule(
        rows, test=rows, tokenizer=str(tiny_policy_folder), batch_size=batch_size,
        validation_batch_size=batch_size, cache_dir=str(tmp_path), allow_overlap=True, validation=None)  # fmt: skip
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)))
    result = trainer().test(module, datamodule=data, verbose=False)[0]
    logprob, right = (torch.cat(parts) for parts in zip(*truth, strict=True))
    assert result["validation/nll"] == pytest.approx(-float(logprob.mean()), rel=1e-5)
    assert result["validation/perplexity"] == pytest.approx(float((-logprob.mean()).exp()), rel=1e-5)
    assert result["validation/token_accuracy"] == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_predictions_are_the_log_probabilities_of_each_row(
    rows: str, truth: list[tuple[torch.Tensor, torch.Tensor]], tiny_policy_folder: Path, trainer: Trainers,
    tmp_path: Path,
) -> None:  # fmt: skip
    data = DemonstrationDataModule(
        rows,
        test=rows,
        tokenizer=str(tiny_policy_folder),
        batch_size=2,
        cache_dir=str(tmp_path),
        allow_overlap=True,
        validation=None,
    )
    batches = trainer().predict(SupervisedIRL(PolicySpec(source=str(tiny_policy_folder))), datamodule=data)
    seen = {}
    for batch in batches or []:
        for row, logprob, mask in zip(batch["row"].tolist(), batch["logprob"], batch["mask"], strict=True):
            seen[row] = logprob[mask]
    assert sorted(seen) == list(range(5))
    for row, (expected, _) in enumerate(truth):
        torch.testing.assert_close(seen[row], expected, atol=1e-5, rtol=0)
