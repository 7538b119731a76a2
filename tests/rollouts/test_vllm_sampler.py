"""Answers of vLLM, whose place a stand-in takes: what it receives, and what becomes of what it returns."""

import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import RewardDataModule
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.modules import CreditSpec, DensePathReinforce
from dpr_lightning.policies import PolicySpec, build_policy, load_tokenizer
from dpr_lightning.rollouts import SamplingOptions, VllmSampler, sample
from tests.rollouts.stand_in_vllm import LLM, stand_in
from tests.tiny import with_adapters
from tests.training import quiet_trainer, write_prompts, write_weaker_policy

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "vllm", stand_in())
    yield
    LLM.noise = 0.0


@pytest.fixture
def policy(tiny_policy_folder: Path) -> torch.nn.Module:
    model, _ = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    return model.eval()


@pytest.fixture
def arguments(tiny_policy_folder: Path) -> dict[str, Any]:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(str(tiny_policy_folder))
    return {"tokenizer": tokenizer, "stop_tokens": [1, 20, 30], "num_samples": 3}


def test_answers_are_those_of_the_weights_that_the_policy_has(
    policy: torch.nn.Module, arguments: dict[str, Any]
) -> None:
    sampler = VllmSampler()
    for step in range(3):
        result = sampler(policy, PROMPTS, SamplingOptions(9), seed=step, **arguments)
        assert result.prompt.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        for row, prompt in enumerate(result.prompt.tolist()):
            assert result.tokens[row, : len(PROMPTS[prompt])].tolist() == PROMPTS[prompt]
            last = int(result.tokens[row][result.mask[row]][-1])
            assert bool(result.terminated[row]) == (last in arguments["stop_tokens"])
        torch.testing.assert_close(
            sequence_logprobs(policy, result.tokens, result.mask), result.logprob, atol=1e-5, rtol=0
        )
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    assert len(LLM.instances) == 1
    woken = ["wake weights", "weights", "wake kv_cache", "forget", "generate", "sleep"]
    assert LLM.instances[0].calls == ["weights", "forget", "generate", "sleep", *woken, *woken]


def test_answers_end_where_they_are_said_to(policy: torch.nn.Module, arguments: dict[str, Any]) -> None:
    """Not at the token that a base model's config calls the end."""
    liked: Any = policy
    liked.config.eos_token_id = 40
    with torch.no_grad():
        liked.get_output_embeddings().weight[40] = liked.get_output_embeddings().weight[20]
    result = VllmSampler()(policy, PROMPTS, SamplingOptions(30), **(arguments | {"num_samples": 20}))
    answers = [row[acted].tolist() for row, acted in zip(result.tokens, result.mask, strict=True)]
    assert any(40 in answer[:-1] for answer in answers)
    assert all(len(answer) == 30 or answer[-1] in arguments["stop_tokens"] for answer in answers)


def test_an_engine_begins_and_ends_without_a_trace(policy: torch.nn.Module, arguments: dict[str, Any]) -> None:
    sampler, before = VllmSampler(), torch.get_rng_state()
    sampler._engine = sampler._start(policy, arguments["tokenizer"], 40)
    assert torch.equal(torch.get_rng_state(), before)
    sampler._engine = None
    LLM.instances.clear()
    sampler(policy, PROMPTS, SamplingOptions(9), longest_prompt=31, **arguments)
    assert LLM.instances[0].options["max_model_len"] == 40
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    sampler.close()
    assert LLM.instances[0].calls[-1] == "shutdown"
    sampler(policy, PROMPTS, SamplingOptions(9), **arguments)
    assert LLM.instances[1].calls == ["weights", "forget", "generate", "sleep"]


def test_an_engine_that_stays_awake_forgets_earlier_keys(policy: torch.nn.Module, arguments: dict[str, Any]) -> None:
    sampler = VllmSampler(sleep=False, options={"enforce_eager": True}, max_length=64)
    for _ in range(2):
        sampler(policy, PROMPTS, SamplingOptions(4), **arguments)
    assert LLM.instances[0].calls == ["weights", "forget", "generate"] * 2
    assert LLM.instances[0].options["enforce_eager"]
    assert LLM.instances[0].options["max_model_len"] == 64
    assert not LLM.instances[0].options["enable_sleep_mode"]


def test_adapters_are_merged_in_and_taken_out_again(policy: torch.nn.Module, arguments: dict[str, Any]) -> None:
    adapted = with_adapters(policy).eval()
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    result = VllmSampler()(adapted, PROMPTS, SamplingOptions(9), **arguments)
    torch.testing.assert_close(
        sequence_logprobs(adapted, result.tokens, result.mask), result.logprob, atol=1e-5, rtol=0
    )
    assert all(torch.equal(weight, before[name]) for name, weight in adapted.state_dict().items())


def test_a_seed_gives_a_prompt_its_answers(policy: torch.nn.Module, arguments: dict[str, Any]) -> None:
    sampler, options = VllmSampler(), SamplingOptions(9)
    whole = sampler(policy, PROMPTS, options, seed=3, **arguments)
    alone = sampler(policy, PROMPTS[1:2], options, seed=3, prompt_ids=[1], **arguments)
    for row in range(3):
        assert alone.tokens[row][alone.mask[row]].tolist() == whole.tokens[3 + row][whole.mask[3 + row]].tolist()
    single = sampler(policy, PROMPTS, options, seed=3, **(arguments | {"num_samples": 1}))
    for row in range(3):
        assert single.tokens[row][single.mask[row]].tolist() == whole.tokens[3 * row][whole.mask[3 * row]].tolist()
    assert not torch.equal(sampler(policy, PROMPTS, options, seed=4, **arguments).tokens, whole.tokens)


def test_greedy_answers_and_stop_strings_are_as_ever(policy: torch.nn.Module, arguments: dict[str, Any]) -> None:
    options = SamplingOptions(12, temperature=0)
    ours = sample(policy, PROMPTS, options, pad_token=int(arguments["tokenizer"].pad_token_id), **arguments)
    theirs = VllmSampler()(policy, PROMPTS, options, **arguments)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.logprob, theirs.logprob)
    text = arguments["tokenizer"].decode(ours.tokens[0][ours.mask[0]], skip_special_tokens=True)
    options = SamplingOptions(12, temperature=0, stop_strings=(text[len(text) // 2],))
    ours = sample(policy, PROMPTS, options, pad_token=int(arguments["tokenizer"].pad_token_id), **arguments)
    theirs = VllmSampler()(policy, PROMPTS, options, **arguments)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.terminated, theirs.terminated)


def learnt(folder: Path, sft: Path, noise: float, **model: Any) -> tuple[DensePathReinforce, dict[str, float]]:
    LLM.noise = noise
    data = RewardDataModule(
        write_prompts(folder / "prompts.jsonl", 6),
        sft=str(sft),
        references=[write_weaker_policy(sft, folder / "reference")],
        sampling=SamplingOptions(6),
        samples_per_prompt=2,
        prompts_per_rollout=6,
        sampler=VllmSampler(),
    )
    credit = CreditSpec(discount=1.0, baseline="none")
    module = DensePathReinforce(PolicySpec(source=str(sft)), **({"estimator": "reinforce", "credit": credit} | model))
    trainer = quiet_trainer(folder, max_steps=2)
    trainer.fit(module, datamodule=data)
    assert LLM.instances[0].calls[-1] == "shutdown"
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_a_policy_learns_from_its_answers(tiny_policy_folder: Path, tmp_path: Path) -> None:
    module, metrics = learnt(tmp_path, tiny_policy_folder, noise=0.03)
    assert 1e-3 < metrics["rollout/sampler_gap"] < 0.1
    assert metrics["train/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["rollout/importance_truncated"] == 0
    rollout = module.last_rollout
    assert rollout is not None
    assert rollout.sampler_logprob is not None
    importance = (rollout.behaviour_logprob - rollout.sampler_logprob).exp()
    assert 0.9 < float(importance.min()) < 1 < float(importance.max()) < 1.1
    # Returns to go without a baseline, weighed.
    reward = rollout.reward - module.kl_coefficient * (rollout.behaviour_logprob - rollout.sft_logprob)
    returns = reward.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(rollout.advantage, returns * importance, atol=1e-5, rtol=1e-4)


def test_a_weight_is_capped(tiny_policy_folder: Path, tmp_path: Path) -> None:
    module, metrics = learnt(tmp_path, tiny_policy_folder, noise=1.0, importance_cap=1.5, check_start=False)
    rollout = module.last_rollout
    assert rollout is not None
    assert rollout.sampler_logprob is not None
    ratio = (rollout.behaviour_logprob - rollout.sampler_logprob).exp()
    acted = torch.arange(6) < rollout.mask.sum(1, keepdim=True)
    assert metrics["rollout/importance_truncated"] == pytest.approx(float((ratio > 1.5)[acted].float().mean()))
    assert 0 < metrics["rollout/importance_truncated"] < 0.9
    reward = rollout.reward - module.kl_coefficient * (rollout.behaviour_logprob - rollout.sft_logprob)
    returns = reward.flip(1).cumsum(1).flip(1) * acted
    torch.testing.assert_close(rollout.advantage, returns * ratio.clamp_max(1.5), atol=1e-5, rtol=1e-4)


def test_a_program_with_other_weights_is_found_out(
    tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ignore(engine: LLM, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for weight in engine.model.parameters():
                weight.normal_(std=0.3)

    monkeypatch.setattr(LLM, "collective_rpc", ignore)
    with pytest.raises(InputError, match=r"may not have taken the policy's weights"):
        learnt(tmp_path, tiny_policy_folder, noise=0.0)


def test_it_says_what_to_install(
    policy: torch.nn.Module, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "vllm":
            raise ImportError("No module named 'vllm'")
        return inner(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'dpr-lightning\[vllm\]'"):
        VllmSampler()(policy, PROMPTS, SamplingOptions(4), **arguments)


def test_shares_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`memory_share` is a share"):
        VllmSampler(memory_share=1.2)
    with pytest.raises(InputError, match="`importance_cap` must be above 0"):
        DensePathReinforce(PolicySpec(source="a"), importance_cap=0.0)
    with pytest.raises(InputError, match="Leave `sampler` or `precomputed` out"):
        RewardDataModule("a", sft="b", references=["c"], sampler=VllmSampler(), precomputed=str(tmp_path))
