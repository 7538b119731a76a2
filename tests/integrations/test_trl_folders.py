"""Folders that TRL's SFTTrainer wrote serve as π_SFT and references as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpr_lightning import DenseReward
from dpr_lightning.cli.main import main

trl = pytest.importorskip("trl")
ROWS = [{"prompt": f"{n} + 1 =", "completion": f" Answer: {n + 1}"} for n in range(16)]


def trained(base: Path, folder: Path, adapter: Any = None) -> Path:
    """The output folder of an SFTTrainer, with checkpoint-2 and checkpoint-4."""
    arguments = trl.SFTConfig(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, max_steps=4, save_steps=2,
        per_device_train_batch_size=4, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base) if adapter is None else str(base),
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=None if adapter is not None else AutoTokenizer.from_pretrained(base),
        peft_config=adapter,
    )
    trainer.train()
    return folder


def score(sft: Path, reference: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows that `dpr rewards` writes."""
    responses = folder / "mine.jsonl"
    responses.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["rewards", "--sft", str(sft), "--references", f"[{reference}]", "--responses", str(responses)]
    assert main([*arguments, "--output", str(folder / "scored")]) == 0
    return Dataset.from_parquet(str(folder / "scored" / "rewards.parquet")).to_list()


def test_checkpoints_of_a_full_model(tiny_policy_folder: Path, tmp_path: Path) -> None:
    run = trained(tiny_policy_folder, tmp_path / "run")
    assert (run / "checkpoint-4" / "optimizer.pt").is_file()
    rows = score(run / "checkpoint-4", run / "checkpoint-2", tmp_path)
    assert len(rows) == len(ROWS)
    # The tokens of the answer and EOS, which training made likelier.
    assert all(len(row["reward"]) == len(row["tokens"]) > 1 for row in rows)
    assert sum(row["total_reward"] for row in rows) > 0
    assert {row["tokens"][-1] for row in rows} == {AutoTokenizer.from_pretrained(tiny_policy_folder).eos_token}


def test_checkpoints_of_an_adapter_and_their_base(tiny_policy_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    run = trained(tiny_policy_folder, tmp_path / "run", adapter)
    assert sum(row["total_reward"] for row in score(run / "checkpoint-4", run / "checkpoint-2", tmp_path)) != 0
    rewards = DenseReward.from_folders(str(run / "checkpoint-4"), [str(tiny_policy_folder)]).score_texts(
        [ROWS[0]["prompt"]], [ROWS[0]["completion"]]
    )
    assert len(rewards[0]) == len(ROWS[0]["completion"]) + 1


def test_the_folder_of_the_run_is_refused_with_its_checkpoints(
    tiny_policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for step in (2, 10):
        AutoModelForCausalLM.from_pretrained(tiny_policy_folder).save_pretrained(run / f"checkpoint-{step}")
    (tmp_path / "mine.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    arguments = ["--sft", str(tiny_policy_folder), "--references", f"[{run}]", "--output", str(tmp_path / "scored")]
    assert main(["rewards", *arguments, "--responses", str(tmp_path / "mine.jsonl")]) == 2
    message = capsys.readouterr().err
    assert "is no policy, but a folder of them" in message
    assert message.index("checkpoint-2") < message.index("checkpoint-10")
