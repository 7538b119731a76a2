"""`dpr audit --rows train --suspicion refused`: rows of which the policy is sure that they should read otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_lightning.cli import trained_rows
from dpr_lightning.cli.suspicious_rows import load_demonstrations
from dpr_lightning.cli.trained_rows import Audited, list_trained, method_of
from dpr_lightning.errors import InputError
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.rewards.suspicion import CheckpointScores
from tests.workspace import write_rows


@pytest.mark.parametrize("sure", [True, False])
def test_rows_with_refused_tokens_are_listed_and_those_alone(
    sure: bool, tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Row r prefers another token at its first token by r nats; the early checkpoint would list all of them."""

    def scores(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **_: Any) -> CheckpointScores:
        margin = torch.zeros(len(tokens), int(mask.sum(1).amax()))
        margin[:, 0] = torch.arange(float(len(tokens))) if model == "final" else 9.0
        return CheckpointScores(-margin - (0.1 if sure else 1.0), margin)

    tokenizer = load_tokenizer(str(tiny_policy_folder))
    source = write_rows(tmp_path / "d.jsonl", [{"prompt": f"{n}=", "completion": f"{n}{n}"} for n in range(6)])
    data = load_demonstrations(source, tokenizer, str(tiny_policy_folder), columns=None, limit=None)
    monkeypatch.setattr(trained_rows, "frozen_policy", lambda folder, dtype: (folder,))
    monkeypatch.setattr(trained_rows, "checkpoint_scores", scores)
    output = tmp_path / "audit.json"
    audited = Audited(source, data, "final", ["early"])
    suspects = list_trained(audited, method_of("refused", None), tokenizer, columns=None, count=200, output=output)
    if not sure:  # of nothing more probable than 1/e is it sure enough
        assert suspects == []
        assert "refuses no token" in capsys.readouterr().out
        assert not output.with_suffix(".listed.jsonl").exists()
        return
    assert [suspect.index for suspect in suspects] == [5, 4, 3]
    listed = [json.loads(line) for line in output.with_suffix(".listed.jsonl").read_text().splitlines()]
    assert [row["row"] for row in listed] == [6, 5, 4]
    assert [[(span["start"], span["end"]) for span in row["loss_spans"]] for row in listed] == [[(0, 1)]] * 3
    assert "is sure that it is another one" in capsys.readouterr().out


def test_no_folds_are_trained_for_it() -> None:
    with pytest.raises(InputError, match="`suspicion: refused` takes the run's own checkpoints, and `folds`"):
        method_of("refused", object())  # type: ignore[arg-type]
