"""lm-eval on a policy in memory, with a task file of the tests and documents in the same folder."""

import json
import math
from functools import partial
from pathlib import Path

import lm_eval.tasks
import pytest
import torch

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.harness import HarnessSpec, harness_scores
from dpr_lightning.policies import PolicySpec, build_policy


def test_accuracy_is_that_of_the_log_likelihoods(tiny_policy_folder: Path, harness_tasks: str) -> None:
    model, tokenizer = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    result = harness_scores(model, tokenizer, HarnessSpec(["doubled"], harness_tasks))
    right = 0
    for a in range(5):
        likely = []
        for choice in (str(2 * a), "x"):
            question, both = tokenizer(f"{a}+{a}=")["input_ids"], tokenizer(f"{a}+{a}={choice}")["input_ids"]
            logits = model(torch.tensor([both])).logits[0].detach().log_softmax(-1)
            likely.append(sum(float(logits[index - 1, both[index]]) for index in range(len(question), len(both))))
        right += likely[0] > likely[1]
    assert result["doubled"]["acc"] == pytest.approx(right / 5)
    assert result["doubled"]["acc_stderr"] == pytest.approx(math.sqrt((right / 5) * (1 - right / 5) / 4), abs=1e-6)
    assert model.training
    # A training goes on with its random numbers.
    torch.manual_seed(7)
    harness_scores(model, tokenizer, HarnessSpec(["doubled"], harness_tasks, limit=1))
    after = torch.rand(1)
    assert after == torch.rand(1, generator=torch.Generator().manual_seed(7))


def test_command_writes_what_it_found(tiny_policy_folder: Path, harness_tasks: str, tmp_path: Path) -> None:
    path = tmp_path / "harness.json"
    arguments = [
        "--policy",
        str(tiny_policy_folder),
        "--tasks",
        "[doubled]",
        "--task_folder",
        harness_tasks,
        "--limit",
        "3",
    ]
    assert main(["harness", *arguments, "--output", str(path)]) == 0
    assert 0 <= json.loads(path.read_text())["results"]["doubled"]["acc"] <= 1


@pytest.mark.parametrize("all_tasks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_missing_is_named(
    all_tasks: bool,
    tiny_policy_folder: Path,
    harness_tasks: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not all_tasks:  # reading those of lm-eval takes seconds
        monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    arguments = ["--policy", str(tiny_policy_folder), "--task_folder", harness_tasks]
    assert main(["harness", *arguments, "--tasks", "[tripled]"]) == 2
    assert "There is no task tripled: neither" in capsys.readouterr().err
    assert main(["harness", *arguments, "--tasks", "[]"]) == 2
    assert "at least one task" in capsys.readouterr().err
    assert main(["harness", *arguments, "--tasks", "[doubled]", "--chat", "true"]) == 2
    assert "it has none" in capsys.readouterr().err
    assert main(["harness", *arguments, "--tasks", "[doubled]", "--batch_size", "0"]) == 2
    assert "`batch_size` is at least 1" in capsys.readouterr().err
    with pytest.raises(InputError, match="from 1; found 0"):
        HarnessSpec(["doubled"], harness_tasks, limit=0)
