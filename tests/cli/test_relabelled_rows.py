"""`dpr clean --how relabel`: which rows get a new answer, from which policy, and what is left as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpr_lightning.cli import relabelled_rows
from dpr_lightning.cli.main import main
from dpr_lightning.cli.relabelled_rows import best_sample
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers
from dpr_lightning.run_manifest import RunManifest, record_stage
from dpr_lightning.types import Rollouts
from tests.tiny import write_tiny_policy
from tests.workspace import write_rows

ROWS = [
    {"question": "1+1=", "steps": "1 and 1\nAnswer: 3", "answer": "2", "loss_spans": [{"start": 0, "end": 1}]},
    {"question": "2+1=", "steps": "Answer: 3", "answer": "3"},
    {"question": "3+1=", "steps": "Answer: 5", "answer": "4"},
    {"question": "4+1=", "steps": "Answer: 7", "answer": "5"},
]
SAMPLED = {"1+1=": ["Answer: 4", "sum\nAnswer: 2", "Answer: 2"], "3+1=": ["Answer: 4", "Answer: 4", "Answer: 9"],
           "4+1=": ["Answer: 1", "Answer: 2", "Answer: 3"]}  # fmt: skip
LOGPROBS = [-1.0, -2.0, -3.0]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on four rows with two folds: the first policy did not learn from the first two rows."""
    monkeypatch.chdir(tmp_path)
    policy = write_tiny_policy(tmp_path / "policies" / "final")
    train = write_rows(tmp_path / "mine.jsonl", ROWS)
    columns = {"prompt": "question", "completion": "steps"}
    entry = {"policies": str(tmp_path / "policies"), "train": train, "verifier": "answer", "columns": columns,
             "policy": {"source": str(policy)}}  # fmt: skip
    record_stage(tmp_path / "run.json", "sft", entry)
    for number, learnt in ((1, ROWS[2:]), (2, ROWS[:2])):
        fold = tmp_path / "audit" / "train.folds" / f"fold_{number}"
        shutil.copytree(policy, fold / "policies" / "final")
        write_rows(fold.with_name(f"fold_{number}.jsonl"), learnt)
    (tmp_path / "audit" / "train.folds" / "folds.json").write_text('{"folds": 2}')
    flags = [{"file": train, "row": number, "hash": row_hash(row)} for number, row in enumerate(ROWS, start=1)]
    write_rows(tmp_path / "flagged.jsonl", flags)
    return tmp_path


def test_rejected_rows_get_the_likeliest_accepted_sample(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    sampled_prompts: list[tuple[str, list[str]]] = []

    def frozen_policy(folder: str) -> tuple[str, None]:
        loaded.append(folder)
        return folder, None

    def collect_answers(policy: Any, tokenizer: Any, prompts: Any, options: Any, **values: Any) -> EvaluatedAnswers:
        assert (values["num_samples"], options.temperature) == (3, 0.7)
        questions = [prompts.texts[index] for index in values["indices"]]
        sampled_prompts.append((Path(policy).parents[1].name, questions))
        texts = [text for question in questions for text in SAMPLED[question]]
        scores = [
            values["verifier"]("", text, prompts.metadata[index])
            for index in values["indices"]
            for text in SAMPLED[prompts.texts[index]]
        ]
        logprob = torch.tensor(LOGPROBS * len(questions)).unsqueeze(1)
        terminated = torch.tensor([True, False, True] * len(questions))
        rollouts = Rollouts(torch.zeros(len(texts), 1), torch.ones(len(texts), 1), terminated, logprob, torch.zeros(1))
        return EvaluatedAnswers(rollouts, texts, scores, [1] * len(texts))

    monkeypatch.setattr(relabelled_rows, "frozen_policy", frozen_policy)
    monkeypatch.setattr(relabelled_rows, "collect_answers", collect_answers)
    command = ["clean", "--run", ".", "--flagged", "flagged.jsonl", "--how", "relabel", "--samples", "3"]
    assert main([*command, "--output", "cleaned.jsonl"]) == 0
    assert sampled_prompts == [("fold_1", ["1+1="]), ("fold_2", ["3+1=", "4+1="])]
    cleaned = [json.loads(line) for line in Path("cleaned.jsonl").read_text().splitlines()]
    # The second sample of the first row is right and did not end; spans of the answer that is gone are gone.
    first = {name: value for name, value in ROWS[0].items() if name != "loss_spans"} | {"steps": "Answer: 2"}
    assert cleaned == [first, ROWS[1], ROWS[2] | {"steps": "Answer: 4"}]
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 rows. 2 rows answered anew, 1 row dropped that no accepted sample answers; 4 rows flagged." in printed
    assert "Not changed, since the verifier accepts the answer: 1 row." in printed


def test_the_likeliest_right_sample() -> None:
    logprobs = np.array([-1.0, -3.0, -2.0])
    assert best_sample(logprobs, np.array([False, True, True])) == 2
    assert best_sample(logprobs, np.array([False, False, False])) is None


def test_the_folds_of_a_run_have_their_rows(run: Path) -> None:
    folds = relabelled_rows._folds(RunManifest.load(run))
    assert [fold.policy.parents[1].name for fold in folds] == ["fold_1", "fold_2"]
    assert folds[0].learnt.isdisjoint(folds[1].learnt)
