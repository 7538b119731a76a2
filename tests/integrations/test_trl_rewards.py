"""TRL's trainers with the dense reward: two steps of each, and what reaches the loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpr_lightning import DenseReward, RewardSpec
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.trl import dense_reward_function

trl = pytest.importorskip("trl")
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)
PROMPTS = ["1 + 1 =", "20 + 3 =", "4 + 44 =", "5 + 5 ="]


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    } | more


def trainer(kind: str, reward: Any, folder: Path, policy: str, **more: Any) -> Any:
    config = trl.RLOOConfig if kind == "RLOOTrainer" else trl.GRPOConfig
    make = getattr(trl, kind) if isinstance(kind, str) else kind
    return make(
        AutoModelForCausalLM.from_pretrained(policy),
        reward,
        args=config(**options(folder, **more)),
        train_dataset=Dataset.from_list([{"prompt": prompt, "answer": "2"} for prompt in PROMPTS]),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )


@pytest.mark.parametrize(("kind", "reduction"), [("GRPOTrainer", "mean"), ("RLOOTrainer", "sum")])
def test_the_reward_function_trains(
    kind: str, reduction: Any, reward: DenseReward, folders: tuple[str, str], tmp_path: Path
) -> None:
    calls: list[tuple[list[Any], list[list[int]], list[float]]] = []
    function = dense_reward_function(reward, reduction)

    def dense(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **more: Any) -> list[float]:
        result = function(prompts, completions, completion_ids, **more)
        calls.append((prompts, completion_ids, result))
        return result

    run = trainer(kind, dense, tmp_path, folders[0])
    before = [weight.clone() for weight in run.model.parameters()]
    run.train()
    assert len(calls) == 2
    assert any((old != new).any() for old, new in zip(before, run.model.parameters(), strict=True))
    for prompts, ids, result in calls:
        expected = reward.score_completion_ids(prompts, ids)
        divisors = [len(values) if reduction == "mean" else 1 for values in expected]
        totals = [sum(values) / divisor for values, divisor in zip(expected, divisors, strict=True)]
        assert result == pytest.approx(totals, abs=1e-5)
    logged = [entry["rewards/dense/mean"] for entry in run.state.log_history if "rewards/dense/mean" in entry]
    assert logged[-1] == pytest.approx(sum(calls[-1][2]) / len(calls[-1][2]), abs=1e-5)


def test_without_ids_the_texts_are_scored(reward: DenseReward) -> None:
    tokens = reward.score_texts(PROMPTS[:1], ["Answer: 2"])[0]
    result = dense_reward_function(reward, "sum")(prompts=PROMPTS[:1], completions=["Answer: 2"], answer=["2"])
    assert result == pytest.approx([sum(value for _, value in tokens)], abs=1e-5)


def test_the_function_has_a_name_for_the_logs(reward: DenseReward) -> None:
    assert dense_reward_function(reward).__name__ == "dense_reward"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="`reduction` is one of mean, sum"):
        dense_reward_function(reward, "max")  # type: ignore[arg-type]


def test_every_token_has_its_own_advantage(reward: DenseReward, folders: tuple[str, str], tmp_path: Path) -> None:
    from dpr_lightning.integrations.trl_trainer import TokenRewardGRPOTrainer

    def make(folder: Path) -> Any:
        return TokenRewardGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folders[0]),
            reward,
            args=trl.GRPOConfig(**options(folder)),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
            processing_class=AutoTokenizer.from_pretrained(folders[0]),
        )

    run = make(tmp_path)
    batch = run._generate_and_score_completions(next(iter(run.get_train_dataloader())))
    mask = batch["completion_mask"].bool()
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    ids = [row[acted].tolist() for row, acted in zip(batch["completion_ids"], mask, strict=True)]
    expected = torch.zeros(mask.shape)
    for row, rewards in zip(expected, reward.score_ids(prompts, ids), strict=True):
        row[: len(rewards)] = torch.tensor(rewards)
    for column in range(mask.shape[1]):
        acted = mask[:, column]
        expected[acted, column] -= expected[acted, column].mean()
    torch.testing.assert_close(batch["advantages"], expected, atol=1e-5, rtol=0)
    assert batch["advantages"].std(dim=1).max() > 0
    before = [weight.clone() for weight in run.model.parameters()]
    run.train()
    assert run.state.global_step == 2
    assert any((old != new).any() for old, new in zip(before, run.model.parameters(), strict=True))


def test_a_conversation_is_encoded_as_trl_samples_from_it(
    reward: DenseReward, folders: tuple[str, str], tmp_path: Path
) -> None:
    names = []
    for number, folder in enumerate(folders):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        names.append(str(tmp_path / str(number)))
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(names[-1])
        tokenizer.save_pretrained(names[-1])
    chat = DenseReward.from_folders(names[0], names[1:], RewardSpec("log_ratio"))
    scored: list[tuple[list[Any], list[list[int]], list[float]]] = []

    def dense(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **more: Any) -> list[float]:
        result = dense_reward_function(chat, "sum")(prompts, completions, completion_ids, **more)
        scored.append((prompts, completion_ids, result))
        return result

    run = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(names[0]),
        dense,
        args=trl.GRPOConfig(**options(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]),
        processing_class=AutoTokenizer.from_pretrained(names[0]),
    )
    batch = run._generate_and_score_completions(next(iter(run.get_train_dataloader())))
    encoded = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    _, ids, result = scored[0]
    assert result == pytest.approx([sum(rewards) for rewards in chat.score_ids(encoded, ids)], abs=1e-5)
