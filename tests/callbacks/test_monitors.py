"""What is watched during training: answers, samples with token rewards, the reward of held-out demonstrations."""

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from dpr_lightning.callbacks import GenerationEvaluation, HeldOutReward, RolloutSamples
from dpr_lightning.data import DemonstrationDataModule, PromptSet, RewardDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.evaluated_answers import collect_answers
from dpr_lightning.functional import token_logprobs
from dpr_lightning.modules import CreditSpec, DensePathReinforce, ScheduleSpec, SupervisedIRL
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from tests.training import Metrics, quiet_trainer, write_demonstrations, write_prompts, write_weaker_policy

SGD = partial(torch.optim.SGD, lr=0.5)
CONSTANT = ScheduleSpec("constant", 0.0)


def contains_a_vowel(prompt: str, answer: str, metadata: Any) -> float:
    """A verifier that random text passes now and then."""
    assert metadata["answer"]
    return float(any(letter in answer for letter in "aeiou"))


VERIFIER = f"{__name__}:contains_a_vowel"


class Memory(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = version = "memory"  # type: ignore[assignment]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Keep them."""
        self.rows.append((int(step or 0), dict(metrics)))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return write_prompts(tmp_path / "prompts.jsonl", 6)


@pytest.fixture
def reference(tiny_policy_folder: Path, tmp_path: Path) -> str:
    return write_weaker_policy(tiny_policy_folder, tmp_path / "reference")


@pytest.fixture
def learn(prompts: str, tiny_policy_folder: Path, reference: str, tmp_path: Path) -> Any:
    def run(callbacks: list[Any], data: dict[str, Any] | None = None, **options: Any) -> DensePathReinforce:
        module = DensePathReinforce(
            PolicySpec(source=str(tiny_policy_folder)), "reinforce", CreditSpec(discount=1.0, baseline="position"),
            optimizer=SGD, schedule=CONSTANT,
        )  # fmt: skip
        rollouts = RewardDataModule(
            prompts, str(tiny_policy_folder), [reference], sampling=SamplingOptions(6), samples_per_prompt=2,
            prompts_per_rollout=3, **(data or {}),
        )  # fmt: skip
        settings: dict[str, Any] = {"max_steps": 3, "max_epochs": -1, "log_every_n_steps": 1}
        quiet_trainer(tmp_path, callbacks=callbacks, **(settings | options)).fit(module, datamodule=rollouts)
        return module

    return run


def test_answers_are_scored_at_the_start_on_the_way_and_at_the_end(
    prompts: str, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    logger = Memory()
    callback = GenerationEvaluation(
        prompts, verifier=VERIFIER, max_new_tokens=4, temperatures=[0.0, 1.0], every_n_steps=2, limit=5
    )
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), optimizer=SGD, schedule=CONSTANT)
    rows = write_demonstrations(tmp_path / "rows.jsonl")
    data = DemonstrationDataModule(rows, batch_size=2, cache_dir=str(tmp_path / "cache"), validation=None)
    run = quiet_trainer(tmp_path, callbacks=[callback], logger=logger, max_steps=3, accumulate_grad_batches=2)
    run.fit(module, datamodule=data)
    result = {step: scores for step, scores in logger.rows if "evaluation/greedy" in scores}
    assert sorted(result) == [0, 2, 3]
    assert module.training
    policy, tokenizer = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    selected = PromptSet.load(prompts, tokenizer, limit=5)
    for step, model in {0: policy, 3: module.policy}.items():
        for name, temperature in (("greedy", 0.0), ("sampled_T1", 1.0)):
            answers = collect_answers(
                model, tokenizer, selected, SamplingOptions(4, temperature), verifier=callback.verifier
            )
            assert result[step][f"evaluation/{name}"] == pytest.approx(answers.score)
            assert result[step][f"evaluation/length_{name}"] == pytest.approx(answers.length)
    assert result[0]["evaluation/sampled_T1"] > 0


def test_evaluations_need_a_distance() -> None:
    with pytest.raises(InputError, match="every_n_steps"):
        GenerationEvaluation("prompts.jsonl", every_n_steps=0)


def test_samples_keep_text_token_rewards_and_score(learn: Any, tmp_path: Path) -> None:
    metrics = Metrics()
    rollouts: list[Any] = []

    class Keep(Metrics):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            rollouts.append(pl_module.last_rollout)

    samples = RolloutSamples(str(tmp_path / "samples"), every_n_rollouts=2, count=2, verifier=VERIFIER)
    module = learn([Keep(), samples, metrics])
    rows = [json.loads(line) for line in (tmp_path / "samples" / "rollout_samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 3, 3]
    for index, rollout in enumerate((rollouts[0], rollouts[2])):
        for row in range(2):
            saved = rows[2 * index + row]
            count = int(rollout.mask[row].sum())
            tokens = rollout.tokens[row][rollout.mask[row]].tolist()
            assert saved["length"] == count
            assert [token for token, _ in saved["token_rewards"]] == [module.tokenizer.decode([t]) for t in tokens]
            rewards = rollout.reward[row, :count]
            assert [reward for _, reward in saved["token_rewards"]] == pytest.approx(rewards.tolist(), abs=1e-4)
            assert saved["reward"] == pytest.approx(float(rewards.sum()), abs=1e-4)
            assert saved["answer"] == re.sub(r"(<eos>|<pad>)+$", "", module.tokenizer.decode(tokens))
            assert saved["score"] == contains_a_vowel("", saved["answer"], {"answer": 1})
            number = int(rollout.prompt[row])
            assert saved["prompt"] == f"{number} + {number * number} ="
    # Logged by a callback after the step, of every rollout and every response of it.
    for step, rollout in zip(metrics.steps, rollouts, strict=True):
        texts = [
            re.sub(r"(<eos>|<pad>)+$", "", module.tokenizer.decode(t[m].tolist()))
            for t, m in zip(rollout.tokens, rollout.mask, strict=True)
        ]
        share = sum(contains_a_vowel("", text, {"answer": 1}) for text in texts) / len(texts)
        assert step["rollout/verifier"] == pytest.approx(share)


def test_the_table_of_samples_grows(learn: Any, tmp_path: Path) -> None:
    import wandb

    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    try:
        learn([RolloutSamples(str(tmp_path), every_n_rollouts=1, count=2)], logger=logger)
    finally:
        wandb.finish()
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("*.table.json")]
    steps = sorted(row[0] for table in tables for row in table["data"])
    assert steps == [1, 1, 2, 2, 3, 3]
    assert tables[0]["columns"] == list(RolloutSamples.COLUMNS)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_held_out_demonstrations(
    accumulate: int, learn: Any, tiny_policy_folder: Path, reference: str, tmp_path: Path
) -> None:
    rows = write_demonstrations(tmp_path / "held_out.jsonl", 5)
    logger = CSVLogger(tmp_path, "", "")
    callbacks = [HeldOutReward(every_n_steps=2, limit=4)]
    module = learn(
        callbacks,
        {"held_out": rows, "reward": RewardSpec("log_ratio")},
        logger=logger,
        accumulate_grad_batches=accumulate,
    )
    with (tmp_path / "metrics.csv").open() as table:
        rows_at = {row["step"]: row for row in csv.DictReader(table) if row.get("held_out/nll")}
    assert sorted(rows_at) == ["0", "2", "3"]  # the beginning, every other step, the end
    result = {name: float(value) for name, value in rows_at["2"].items() if name.startswith("held_out")}
    policy, tokenizer = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    weak, _ = build_policy(PolicySpec(source=reference))
    reward, nll, tokens = 0.0, 0.0, 0
    for line in Path(rows).read_text().splitlines()[:4]:
        row = json.loads(line)
        start = len(tokenizer(row["prompt"])["input_ids"])
        whole = torch.tensor([tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]])
        with torch.no_grad():
            by_sft, by_weak, by_now = (
                token_logprobs(model.eval()(whole).logits[:, :-1], whole[:, 1:])[0, start - 1 :]
                for model in (policy, weak, module.policy)
            )
        reward += float((by_sft - by_weak).sum())
        nll -= float(by_now.sum())
        tokens += len(by_now)
    assert result["held_out/reward_per_token"] == pytest.approx(reward / tokens, abs=1e-5)
    # The third step came after the measurement at the second, so it differs a little.
    assert result["held_out/nll"] == pytest.approx(nll / tokens, rel=0.05)
    assert result["held_out/nll"] != pytest.approx(nll / tokens, rel=1e-6)


def test_nothing_held_out_is_nothing_to_watch(
    learn: Any, tmp_path: Path, tiny_policy_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = CSVLogger(tmp_path, "", "")
    learn([HeldOutReward(every_n_steps=1)], logger=logger)
    assert "held_out" not in (tmp_path / "metrics.csv").read_text()
    assert caplog.text.count("HeldOutReward measures nothing: set `data.held_out`") == 1
    data = DemonstrationDataModule(write_demonstrations(tmp_path / "rows.jsonl"), batch_size=4, cache_dir=None)
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)))
    with pytest.raises(InputError, match="DemonstrationDataModule has none"):
        quiet_trainer(tmp_path, callbacks=[HeldOutReward()]).fit(module, datamodule=data)
