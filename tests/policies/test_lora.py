"""Adapters: equal to their base at the start, trained alone, frozen beside each other on one base."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpr_lightning.errors import InputError
from dpr_lightning.policies import FrozenPolicies, LoraSpec, PolicySpec, build_policy, load_tokenizer, save_policy
from dpr_lightning.policies.adapters import is_adapter

TOKENS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))


def adapted(folder: Path, noise: float = 0.0, seed: int = 0) -> tuple[torch.nn.Module, PolicySpec]:
    spec = PolicySpec(source=str(folder), lora=LoraSpec(rank=4, alpha=8.0))
    model, _ = build_policy(spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(noise * torch.randn(weight.shape, generator=generator))
    return model, spec


def test_an_adapter_starts_as_its_base(tiny_policy_folder: Path) -> None:
    model, _ = adapted(tiny_policy_folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    torch.testing.assert_close(model.eval()(TOKENS).logits, base(TOKENS).logits, atol=0, rtol=0)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_saved_adapter_is_loaded_merged_and_trained_on(tiny_policy_folder: Path, tmp_path: Path) -> None:
    model, spec = adapted(tiny_policy_folder, noise=0.1)
    tokenizer = load_tokenizer(str(tiny_policy_folder))
    folder = save_policy(model, tokenizer, tmp_path / "adapter", spec)
    assert is_adapter(folder)
    assert not (folder / "model.safetensors").exists()
    expected = model.eval()(TOKENS).logits
    frozen, _ = build_policy(PolicySpec(source=str(folder)), trainable=False)
    torch.testing.assert_close(frozen(TOKENS).logits, expected, atol=1e-5, rtol=0)
    again, _ = build_policy(PolicySpec(source=str(folder), lora=LoraSpec(rank=4, alpha=8.0)))
    torch.testing.assert_close(again.eval()(TOKENS).logits, expected, atol=1e-6, rtol=0)
    assert {name for name, weight in again.named_parameters() if weight.requires_grad} == {
        name for name, weight in model.named_parameters() if weight.requires_grad
    }


def test_merged_export_is_a_plain_model(tiny_policy_folder: Path, tmp_path: Path) -> None:
    model, spec = adapted(tiny_policy_folder, noise=0.1)
    before = model.eval()(TOKENS).logits
    tokenizer = load_tokenizer(str(tiny_policy_folder))
    folder = save_policy(model, tokenizer, tmp_path / "merged", spec, merge=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(plain(TOKENS).logits, before, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(TOKENS).logits, before, atol=1e-6, rtol=0)


def test_frozen_adapters_share_the_base_and_leave_the_trained_one_alone(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_policy_folder))
    folders, expected = {}, {}
    for name, seed in (("sft", 1), ("reference_0", 2)):
        adapted_policy, spec = adapted(tiny_policy_folder, noise=0.1, seed=seed)
        folders[name] = str(save_policy(adapted_policy, tokenizer, tmp_path / name, spec))
        expected[name] = adapted_policy.eval()(TOKENS).logits.detach()
    spec = PolicySpec(source=folders["sft"], lora=LoraSpec(rank=4, alpha=8.0))
    policy, _ = build_policy(spec)
    policy.train()
    count = sum(weight.numel() for weight in policy.parameters())
    trained = {name: weight.clone() for name, weight in policy.named_parameters() if weight.requires_grad}
    frozen = FrozenPolicies.load(folders, policy=policy, policy_spec=spec)
    assert frozen.is_shared
    adapter = sum(weight.numel() for weight in trained.values())
    assert sum(weight.numel() for weight in policy.parameters()) == count + 2 * adapter
    optimizer = torch.optim.SGD([weight for weight in policy.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        for name, logits in expected.items():
            with frozen.use(name) as model, torch.no_grad():
                torch.testing.assert_close(model(TOKENS).logits, logits, atol=1e-5, rtol=0)
        assert policy.training
        assert {name for name, weight in policy.named_parameters() if weight.requires_grad} == set(trained)
        policy(TOKENS).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = dict(policy.named_parameters())
    assert any(not torch.equal(moved[name], before) for name, before in trained.items())


def test_full_references_are_not_shared(tiny_policy_folder: Path, tmp_path: Path) -> None:
    policy, spec = adapted(tiny_policy_folder, noise=0.1)
    frozen = FrozenPolicies.load({"sft": str(tiny_policy_folder)}, policy=policy, policy_spec=spec)
    assert not frozen.is_shared


def test_an_adapter_for_another_base_is_refused(tiny_policy_folder: Path, tmp_path: Path) -> None:
    from tests.tiny import write_tiny_policy

    model, spec = adapted(tiny_policy_folder, noise=0.1)
    tokenizer = load_tokenizer(str(tiny_policy_folder))
    folder = save_policy(model, tokenizer, tmp_path / "adapter", spec)
    other = write_tiny_policy(tmp_path / "other", hidden_size=48)
    with pytest.raises(InputError, match="does not fit"):
        build_policy(PolicySpec(source=str(other), checkpoint=str(folder), lora=LoraSpec(rank=4, alpha=8.0)))
