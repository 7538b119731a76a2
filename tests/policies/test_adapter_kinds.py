"""Adapters of peft's kinds: merged, exported and copied they are the policy that was trained, or they are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from dpr_lightning.cli.export_command import export
from dpr_lightning.errors import InputError
from dpr_lightning.policies import (
    FrozenPolicies,
    LoraSpec,
    PolicySpec,
    build_policy,
    merged_weights,
    save_policy,
    tied_names,
    untie,
)
from dpr_lightning.rollouts.prefetch import RolloutPrefetcher
from tests.tiny import tiny_tokenizer, write_tiny_policy

TOKENS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=TARGETS),
    "rslora": lambda: peft.LoraConfig(r=2, target_modules=TARGETS, use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "lora with biases": lambda: peft.LoraConfig(r=2, target_modules=TARGETS, bias="lora_only"),
    "embeddings": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "head": lambda: peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]),
    "whole head": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "whole embeddings": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "whole norm": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["model.norm"]),
    "tied by peft": lambda: peft.LoraConfig(
        r=2, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True
    ),
    "single tokens": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 9]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=TARGETS),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, use_cayley_neumann=False),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
    "fourier": lambda: peft.FourierFTConfig(n_frequency=16, target_modules=TARGETS),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}  # fmt: skip
ON_EMBEDDINGS = {"embeddings", "head", "whole head", "whole embeddings", "tied by peft", "single tokens"}
REFUSED: dict[str, Any] = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=4),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4),
    "P_TUNING": lambda: peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8),
}


@pytest.fixture(scope="module", params=[False, True], ids=["separate", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_policy(tmp_path_factory.mktemp("base") / "policy", layers=1)
    if not request.param:
        model = AutoModelForCausalLM.from_pretrained(folder)
        untie(model, tied_names(model))
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        model.save_pretrained(folder)
    return folder


def train(model: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Move every trained weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(scale * torch.randn(weight.shape, generator=generator))


def write_adapter(base: Path, folder: Path, config: Any, name: str = "default") -> torch.Tensor:
    """An adapter written by peft alone, with the base's tokenizer; returns what it says."""
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config, adapter_name=name)
    train(model)
    model.save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(folder)
    return logits(model)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return result


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, atol=5e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "base"), [(kind, kind in ON_EMBEDDINGS) for kind in KINDS], indirect=["base"])
def test_adapters_of_peft(kind: str, base: Path, tmp_path: Path) -> None:
    expected = write_adapter(base, tmp_path / "adapter", KINDS[kind]())
    spec = PolicySpec(source=str(tmp_path / "adapter"), lora=LoraSpec())
    assert not close(expected, logits(AutoModelForCausalLM.from_pretrained(base)))
    policy, tokenizer = build_policy(spec)
    assert close(logits(policy), expected)
    assert close(logits(build_policy(PolicySpec(source=spec.source), trainable=False)[0]), expected)

    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with merged_weights(policy) as (_, weights):
        plain = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
        plain.load_state_dict(weights)
        assert close(logits(plain), expected)
    after = policy.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert policy.get_base_model().config.tie_word_embeddings == (kind in ON_EMBEDDINGS)  # type: ignore[operator]
    assert close(logits(policy), expected)

    ahead = RolloutPrefetcher(str(base))
    assert close(logits(ahead._with_weights_of(policy)), expected)

    export(spec.source, str(tmp_path / "exported"))
    save_policy(policy, tokenizer, tmp_path / "merged", spec, merge=True)
    for folder in (tmp_path / "exported", tmp_path / "merged"):
        whole = AutoModelForCausalLM.from_pretrained(folder)
        assert close(logits(whole), expected)
        saved = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
        assert saved == (whole.lm_head.weight is whole.model.embed_tokens.weight)
        assert saved == torch.equal(whole.lm_head.weight, whole.model.embed_tokens.weight)

    again = save_policy(policy, tokenizer, tmp_path / "again", spec)
    reread = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(again))
    assert close(logits(reread), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_is_refused_before_the_base_is_loaded(kind: str, tmp_path: Path) -> None:
    base = write_tiny_policy(tmp_path / "base")
    config = REFUSED[kind]()
    config.task_type = "CAUSAL_LM"
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    shutil.copy(base / "tokenizer.json", tmp_path / "adapter")
    shutil.rmtree(base)
    for spec in (PolicySpec(source=str(tmp_path / "adapter")),
                 PolicySpec(source=str(base), checkpoint=str(tmp_path / "adapter"), lora=LoraSpec())):  # fmt: skip
        with pytest.raises(InputError, match=f"of the kind {kind}, which cannot be merged"):
            build_policy(spec)
    with pytest.raises(InputError, match=f"of the kind {kind}"):
        FrozenPolicies.load({"sft": str(tmp_path / "adapter")})


def test_adapters_for_other_tasks_are_refused(tiny_policy_folder: Path, tmp_path: Path) -> None:
    write_adapter(tiny_policy_folder, tmp_path / "adapter", KINDS["lora"]())
    change(tmp_path / "adapter" / "adapter_config.json", task_type="SEQ_CLS")
    with pytest.raises(InputError, match="trained for the task SEQ_CLS"):
        build_policy(PolicySpec(source=str(tmp_path / "adapter")))


def test_activated_lora_is_refused(tiny_policy_folder: Path, tmp_path: Path) -> None:
    write_adapter(tiny_policy_folder, tmp_path / "adapter", KINDS["lora"]())
    change(tmp_path / "adapter" / "adapter_config.json", alora_invocation_tokens=[4])
    with pytest.raises(InputError, match="kind aLoRA"):
        build_policy(PolicySpec(source=str(tmp_path / "adapter")))


def test_several_adapters_in_folders(tiny_policy_folder: Path, tmp_path: Path) -> None:
    expected = write_adapter(tiny_policy_folder, tmp_path / "adapter", KINDS["lora"](), name="math")
    with pytest.raises(InputError, match=r"a folder of them: .*/adapter/math\. Name one of these"):
        build_policy(PolicySpec(source=str(tmp_path / "adapter")))
    spec = PolicySpec(source=str(tmp_path / "adapter" / "math"), tokenizer=str(tiny_policy_folder))
    assert close(logits(build_policy(spec, trainable=False)[0]), expected)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_for_another_number_of_layers(layers: int, tiny_policy_folder: Path, tmp_path: Path) -> None:
    write_adapter(tiny_policy_folder, tmp_path / "adapter", KINDS["lora"]())
    other = write_tiny_policy(tmp_path / "other", layers=layers)
    with pytest.raises(InputError, match="does not fit this base: it lacks"):
        build_policy(PolicySpec(source=str(other), checkpoint=str(tmp_path / "adapter")))


def test_a_policy_goes_on_training_whole_from_a_merged_adapter(tiny_policy_folder: Path, tmp_path: Path) -> None:
    write_adapter(tiny_policy_folder, tmp_path / "adapter", KINDS["lora"]())
    policy, _ = build_policy(PolicySpec(source=str(tmp_path / "adapter")))
    assert all(weight.requires_grad for weight in policy.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", ["modules_to_save", "resized", "single tokens"])
def test_an_adapter_with_tokens_that_its_base_has_not(saved: str, base: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"] if saved == "modules_to_save" else None,
        trainable_token_indices=[65, 66] if saved == "single tokens" else None,
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    train(adapted)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=saved == "resized")
    tokenizer.save_pretrained(tmp_path / "adapter")
    if saved == "single tokens" and not model.config.tie_word_embeddings:
        with pytest.raises(InputError, match=r"67 tokens and its base has 65; its file has no values .*'lm_head'"):
            build_policy(PolicySpec(source=str(tmp_path / "adapter")))
        return
    policy, _ = build_policy(PolicySpec(source=str(tmp_path / "adapter")), trainable=False)
    assert close(logits(policy), logits(adapted))
    export(str(tmp_path / "adapter"), str(tmp_path / "whole"))
    assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(adapted))


@pytest.mark.parametrize(
    "lora", [LoraSpec(rank=2, modules_to_save=["lm_head"]), LoraSpec(rank=2, use_dora=True, use_rslora=True)]
)
def test_lora_options_reach_peft_and_come_back(lora: LoraSpec, tiny_policy_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder), lora=lora)
    policy, tokenizer = build_policy(spec)
    config = policy.peft_config["default"]  # type: ignore[index, union-attr]
    assert (config.use_dora, config.use_rslora) == (lora.use_dora, lora.use_rslora)
    train(policy)
    folder = save_policy(policy, tokenizer, tmp_path / "adapter", spec)
    for trainable in (True, False):
        again, _ = build_policy(PolicySpec(source=str(folder), lora=lora), trainable=trainable)
        assert close(logits(again), logits(policy))


def test_frozen_adapters_share_a_base_only_where_they_change_nothing_else(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    for kind, whole, shared in (
        ("lora", None, True),
        ("whole head", None, False),
        ("whole head", ["lm_head"], True),
        ("lora with biases", None, False),
        ("embeddings", None, False),
    ):
        adapter = tmp_path / f"{kind} {shared}"
        expected = write_adapter(tiny_policy_folder, adapter, KINDS[kind]())
        spec = PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(rank=2, modules_to_save=whole))
        policy, _ = build_policy(spec)
        train(policy)
        trained = logits(policy)
        frozen = FrozenPolicies.load({"sft": str(adapter)}, policy=policy, policy_spec=spec)
        assert frozen.is_shared == shared
        with frozen.use("sft") as model:
            assert close(logits(model), expected)
        assert torch.equal(logits(policy), trained)


def test_weights_of_a_run_with_frozen_adapters_that_hold_whole_layers(tiny_policy_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(rank=2, modules_to_save=["lm_head"]))
    policy, tokenizer = build_policy(spec)
    train(policy)
    sft = save_policy(policy, tokenizer, tmp_path / "sft", spec)
    FrozenPolicies.load({"sft": str(sft)}, policy=policy, policy_spec=spec)
    train(policy, seed=1)
    state = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "run.ckpt")
    again, _ = build_policy(
        PolicySpec(source=str(tiny_policy_folder), checkpoint=str(tmp_path / "run.ckpt"), lora=spec.lora)
    )
    assert close(logits(again), logits(policy))
    lacking = {name: value for name, value in state.items() if "modules_to_save" not in name}
    torch.save({"state_dict": lacking}, tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="holds another architecture"):
        build_policy(PolicySpec(source=str(tiny_policy_folder), checkpoint=str(tmp_path / "run.ckpt"), lora=spec.lora))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
