"""`dpr audit --plant`: mistakes in a copy of the training rows, and what the list of the copy has of them."""

import json
import random
from pathlib import Path

import pytest

from dpr_lightning.cli import planted_rows
from dpr_lightning.cli.main import main
from dpr_lightning.cli.suspicious_rows import load_demonstrations
from dpr_lightning.cli.trained_rows import Audited
from dpr_lightning.experiments import run_folder
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.run_manifest import RunManifest
from tests.tiny import write_tiny_policy
from tests.workspace import write_rows

OFFLINE = ["--set", "run.wandb=off"]
AUDIT = ["audit", "--run", "run", "--rows", "train", "--folds", "2", "--plant", "0.25"]


def test_a_list_is_measured_on_a_copy_and_the_rows_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_policy(tmp_path / "base")
    rows = [{"question": f"{a}+{b}=", "answer": f"sum {a + b}", "id": 7 * a + b} for a in range(5) for b in range(4)]
    random.Random(0).shuffle(rows)
    later = [{"question": "9+9=", "answer": "sum 18", "id": 0}]  # beyond the rows that are read
    before = Path(write_rows(Path("mine.jsonl"), rows + later)).read_bytes()
    arguments = ["--epochs", "2", "--limit", "20", "--validation", "none", "--learning_rate", "1e-2"]
    assert main(["sft", "--model", "base", "--train", "mine.jsonl", "--output", "run", *arguments, *OFFLINE]) == 0
    fit, begun = run_folder.fit, []

    def counted_fit(config: Path) -> None:
        begun.append(str(config.relative_to("run/audit")))
        fit(config)

    monkeypatch.setattr(run_folder, "fit", counted_fit)
    assert main(AUDIT) == 0
    copies = ["train.planted/sft.yaml", "train.planted/fold_1.yaml", "train.planted/fold_2.yaml"]
    assert begun == [*copies, "train.folds/fold_1.yaml", "train.folds/fold_2.yaml"]
    assert Path("mine.jsonl").read_bytes() == before

    printed = " ".join(capsys.readouterr().out.split())
    mistakes = [json.loads(line) for line in Path("run/audit/train.planted/mistakes.jsonl").read_text().splitlines()]
    assert len(mistakes) == 5
    copy = [json.loads(line) for line in Path("run/audit/train.planted/sft.jsonl").read_text().splitlines()]
    answers = {mistake["row"]: mistake["answer"] for mistake in mistakes}
    assert copy == [row | {"answer": answers.get(number, row["answer"])} for number, row in enumerate(rows, start=1)]
    assert all(rows[number - 1]["answer"] != answer for number, answer in answers.items())

    record = json.loads(Path("run/audit/train.json").read_text())
    planted = record["planted"]
    assert (planted["rows"], planted["mistakes"], planted["share"]) == (20, 5, 0.25)
    assert sorted(planted["kinds"]) == sorted(mistake["kind"] for mistake in mistakes)
    assert planted["top"][0]["hits"] == sum(rank <= 10 for rank in planted["ranks"])
    assert f"the first 10 rows listed have {planted['top'][0]['hits']}" in printed
    assert planted["words"] in printed
    assert "this is a lower bound" in printed
    page = Path("run/audit/train.html").read_text("utf-8")
    assert "How far to trust this list" in page
    assert "Precision of the list" in page
    listed = [json.loads(line) for line in Path("run/audit/train.listed.jsonl").read_text().splitlines()]
    assert {row["row"] for row in listed} == set(range(1, 21))
    assert all(row["file"].endswith("mine.jsonl") for row in listed)

    begun.clear()
    assert main(AUDIT) == 0
    assert begun == []


def test_no_row_gets_another_answer_to_its_own_prompt(tmp_path: Path) -> None:
    policy = str(write_tiny_policy(tmp_path / "base"))
    rows = [{"prompt": f"{name}?", "completion": f"{name} {word}"} for name in "ab" for word in ("up", "down", "left")]
    source = write_rows(tmp_path / "mine.jsonl", rows)
    tokenizer = load_tokenizer(policy)
    data = load_demonstrations(source, tokenizer, policy, columns=None, limit=None)
    for seed in range(6):
        planting = planted_rows.Planting(0.5, seed, RunManifest(tmp_path / "run.json", {}), tmp_path)
        audited = Audited(source, data, policy, [])
        mistakes = planted_rows._plant(planted_rows.rows_of(source, data), audited, planting, tokenizer, None)
        assert len(mistakes) == 3
        assert all(mistake.text[0] != "ab"[mistake.index // 3] for mistake in mistakes)
