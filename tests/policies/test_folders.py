"""What a folder must hold, what is said when it does not, and what exported folders never do."""

import json
import os
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dpr_lightning.engine import default_token_budget, disable_dropout, parts_by_length, sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_folder
from dpr_lightning.policies import (
    FrozenPolicies,
    LoraSpec,
    PolicySpec,
    build_policy,
    check_policy,
    load_tokenizer,
    save_policy,
)
from tests.training import write_adapter

TOKENS = torch.randint(3, 60, (5, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1, 0],
                     [0, 1, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()  # fmt: skip


def without(folder: Path, target: Path, *patterns: str) -> str:
    """A copy of a folder that lacks some files."""
    copytree(folder, target)
    for pattern in patterns:
        for path in target.glob(pattern):
            path.unlink()
    return str(target)


def test_a_folder_without_a_tokenizer(tiny_policy_folder: Path, tmp_path: Path) -> None:
    folder = without(tiny_policy_folder, tmp_path / "policy", "tokenizer*", "special*")
    with pytest.raises(InputError, match=r"No tokenizer could be loaded from .*config\.json, .*model\.safetensors"):
        build_policy(PolicySpec(source=folder))
    with pytest.raises(InputError, match="No tokenizer"):
        FrozenPolicies.load({"sft": str(tiny_policy_folder), "reference_0": folder})


def test_a_folder_that_is_no_policy_names_the_ones_near_it(tiny_policy_folder: Path, tmp_path: Path) -> None:
    for name in ("final", "step_0000010"):
        copytree(tiny_policy_folder, tmp_path / "policies" / name)
    (tmp_path / "policies" / "references.json").write_text("{}")
    with pytest.raises(InputError, match=r"a folder of them: .*policies/final, .*policies/step_0000010\. Name one"):
        build_policy(PolicySpec(source=str(tmp_path / "policies")))
    with pytest.raises(InputError, match=r"There is no folder .*/fina'\. Did you mean .*policies/final\?"):
        check_policy(PolicySpec(source=str(tmp_path / "policies" / "fina")))
    with pytest.raises(InputError, match=r"There is no folder .*/a/b/c'\. Name a folder"):
        check_policy(PolicySpec(source=str(tmp_path / "a" / "b" / "c")))


def test_a_folder_without_weights(tiny_policy_folder: Path, tmp_path: Path) -> None:
    folder = without(tiny_policy_folder, tmp_path / "policy", "*.safetensors")
    with pytest.raises(InputError, match=r"No causal language model could be loaded.*model\.safetensors"):
        build_policy(PolicySpec(source=folder))


def test_a_checkpoint_that_does_not_exist(tiny_policy_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder), checkpoint=str(tmp_path / "step_0000160"))
    with pytest.raises(InputError, match=r"checkpoint .*step_0000160' does not exist"):
        build_policy(spec)


def test_a_tokenizer_of_another_model(tiny_policy_folder: Path, tmp_path: Path) -> None:
    folder = without(tiny_policy_folder, tmp_path / "policy")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"has 66 tokens and the model .* embeds 65"):
        build_policy(PolicySpec(source=folder))


def test_an_adapter_on_random_weights_is_refused(tiny_policy_folder: Path) -> None:
    with pytest.raises(InputError, match="saved nowhere"):
        PolicySpec(architecture={"model_type": "llama"}, tokenizer=str(tiny_policy_folder), lora=LoraSpec())


def test_an_exported_configuration_pads_with_something_else_than_eos(tiny_policy_folder: Path, tmp_path: Path) -> None:
    folder = Path(without(tiny_policy_folder, tmp_path / "base"))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"pad_token_id": 1, "eos_token_id": [1, 7]}))
    spec = PolicySpec(source=str(folder))
    saved = save_policy(*build_policy(spec), tmp_path / "policy", spec)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((saved / name).read_text())
        assert config["pad_token_id"] == 0
        assert config["eos_token_id"] == [1, 7]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_export_leaves_the_policy_as_it_was_to_the_bit(
    dtype: str, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tiny_policy_folder, tmp_path / "adapter", noise=0.3)
    spec = PolicySpec(source=adapter, dtype=dtype, lora=LoraSpec(rank=2, alpha=4.0))  # type: ignore[arg-type]
    model, tokenizer = build_policy(spec)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    save_policy(model, tokenizer, tmp_path / "merged", spec, merge=True)
    assert {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])} == set()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=getattr(torch, dtype))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(merged(TOKENS).logits, model.eval()(TOKENS).logits, atol=tolerance, rtol=0)


def test_an_adapter_keeps_its_rank_and_says_so(
    tiny_policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = write_adapter(tiny_policy_folder, tmp_path / "adapter", rank=2)
    build_policy(PolicySpec(source=adapter, lora=LoraSpec(rank=2, alpha=4.0)))
    assert "has rank" not in caplog.text
    build_policy(PolicySpec(source=adapter, lora=LoraSpec(rank=8, alpha=4.0)))
    assert "has rank 2" in caplog.text


def test_a_lightning_checkpoint_with_frozen_adapters_beside_the_trained_one(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    folders = {name: write_adapter(tiny_policy_folder, tmp_path / name, seed=seed)
               for seed, name in enumerate(("sft", "reference_0"))}  # fmt: skip
    spec = PolicySpec(source=folders["sft"], lora=LoraSpec(rank=2, alpha=4.0))
    policy, _ = build_policy(spec)
    FrozenPolicies.load(folders, policy=policy, policy_spec=spec)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".default." in name:
                weight.mul_(2.0)
    path = tmp_path / "run.ckpt"
    torch.save({"state_dict": {f"policy.{name}": value for name, value in policy.state_dict().items()}}, path)
    again, _ = build_policy(PolicySpec(source=folders["sft"], checkpoint=str(path), lora=spec.lora))
    torch.testing.assert_close(again.eval()(TOKENS).logits, policy.eval()(TOKENS).logits, atol=1e-6, rtol=0)


def test_safetensors_own_error_for_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with pytest.raises(InputError, match=r"No space left on device.*free some space"), whole_folder(folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="shape"), whole_folder(folder):
        raise SafetensorError("invalid shape")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_may_be_read_by_whoever_may_read_other_files(tiny_policy_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    hidden = os.umask(0o027)
    try:
        folder = save_policy(model, tokenizer, tmp_path / "policy", PolicySpec(source=str(tiny_policy_folder)))
    finally:
        os.umask(hidden)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


@pytest.mark.parametrize(("vocabulary", "budget"), [(65, 16384), (49152, 5461), (2**30, 1)])
def test_the_default_budget_bounds_the_logits(vocabulary: int, budget: int) -> None:
    model = torch.nn.Module()  # whose head is not known
    model.config = LlamaConfig(vocab_size=vocabulary)  # type: ignore[assignment]
    assert default_token_budget(model) == budget


def test_a_plain_head_needs_no_such_bound() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes))  # type: ignore[arg-type]
    assert default_token_budget(model) == 16384


@pytest.mark.parametrize("budget", [1, 20, 10_000, None])
def test_sequence_logprobs_are_those_of_the_whole_forward_pass(budget: int | None, tiny_policy_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    result = sequence_logprobs(model, TOKENS, MASK, token_budget=budget)
    logprobs = model(TOKENS).logits.log_softmax(-1)
    assert result.shape == (5, 8)
    for row in range(5):
        indices = MASK[row].nonzero().squeeze(1)
        expected = torch.zeros(8)
        expected[: len(indices)] = logprobs[row, indices - 1, TOKENS[row, indices]]
        torch.testing.assert_close(result[row], expected.detach(), atol=2e-6, rtol=0)
    limit = budget if budget is not None else default_token_budget(model)
    parts = list(parts_by_length(TOKENS, MASK, limit))
    assert sorted(int(row) for part in parts for row in part[0]) == list(range(5))
    assert all(len(part[0]) == 1 or part[1].numel() <= limit for part in parts)


def test_dropout_modules_are_off_too() -> None:
    config = GPT2Config(
        vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5
    )
    model = GPT2LMHeadModel(config).train()
    assert not torch.equal(model(TOKENS).logits, model(TOKENS).logits)
    disable_dropout(model)
    assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)
