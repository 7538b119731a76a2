"""Which attention a policy gets, and that every later reader of its folder gets the same."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from dpr_lightning.errors import InputError
from dpr_lightning.policies import (
    FrozenPolicies,
    LoraSpec,
    PolicySpec,
    build_policy,
    check_policy,
    load_tokenizer,
    save_policy,
)
from dpr_lightning.policies.attention_choice import chosen_attention
from dpr_lightning.policies.outline import outline_policy
from tests.tiny import write_decoder


def attention_of(model: Any) -> str:
    return str(model.config._attn_implementation)


def test_an_architecture_without_sdpa_is_attended_eagerly_everywhere(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "base", "gemma2", head_dim=16)
    spec = PolicySpec(source=source)
    model, tokenizer = build_policy(spec)
    saved = str(save_policy(model, tokenizer, tmp_path / "policy", spec))
    assert attention_of(model) == "eager"
    assert attention_of(build_policy(PolicySpec(source=saved), trainable=False)[0]) == "eager"
    assert attention_of(outline_policy(PolicySpec(source=saved))) == "eager"
    with FrozenPolicies.load({"sft": saved}).use("sft") as frozen:
        assert attention_of(frozen) == "eager"


@pytest.mark.parametrize(("kind", "choice"), [("gemma2", "sdpa"), ("llama", "flash_attention_2")])
def test_an_impossible_choice_names_its_option(kind: str, choice: str, tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "base", kind)
    with pytest.raises(InputError, match=rf"`model\.policy\.attention: {choice}`.*Leave .* out"):
        check_policy(PolicySpec(source=source, attention=choice))
    with pytest.raises(InputError, match=rf"`data\.attention: {choice}`"):
        FrozenPolicies.load({"sft": source}, attention=choice)


def test_a_choice_goes_with_the_folder(tiny_policy_folder: Path, tmp_path: Path) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder), attention="eager")
    whole = str(save_policy(*build_policy(spec), tmp_path / "whole", spec))
    assert attention_of(build_policy(PolicySpec(source=whole), trainable=False)[0]) == "eager"
    # An adapter on a base that has a choice, and one that was trained with a choice.
    on_whole = PolicySpec(source=whole, lora=LoraSpec(rank=2))
    first = str(save_policy(*build_policy(on_whole), tmp_path / "first", on_whole))
    choice = PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(rank=2), attention="eager")
    second = str(save_policy(*build_policy(choice), tmp_path / "second", choice))
    for folder in (first, second):
        assert attention_of(build_policy(PolicySpec(source=folder), trainable=False)[0]) == "eager"
        assert attention_of(build_policy(PolicySpec(source=folder, attention="sdpa"), trainable=False)[0]) == "sdpa"
    assert attention_of(AutoModelForCausalLM.from_pretrained(whole)) == "sdpa"  # a plain folder for others
    usual = PolicySpec(source=str(tiny_policy_folder))
    plain = save_policy(*build_policy(usual), tmp_path / "plain", usual)
    assert not (plain / "dpr_policy.json").exists()


def test_a_saved_choice_that_this_machine_has_not_is_left_out(
    tiny_policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder))
    choice = PolicySpec(source=str(tiny_policy_folder), attention="flash_attention_2")
    folder = str(save_policy(build_policy(spec)[0], load_tokenizer(str(tiny_policy_folder)), tmp_path / "p", choice))
    assert chosen_attention(PolicySpec(source=folder)) == "flash_attention_2"
    for _ in range(2):
        assert attention_of(build_policy(PolicySpec(source=folder), trainable=False)[0]) == "sdpa"
    assert sum("flash_attention_2" in message for message in caplog.messages) == 1
