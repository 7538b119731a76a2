"""The probe of the model in training: is it causal, which attention, how many positions and experts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dpr_lightning.errors import InputError
from dpr_lightning.policies import Capabilities, LoraSpec, PolicySpec, build_policy, capabilities_of
from dpr_lightning.policies.adapters import add_adapter
from tests.tiny import decoder, with_adapters, write_decoder

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def test_a_decoder_is_causal_and_says_what_it_has() -> None:
    expected = Capabilities(causal=True, attention="sdpa", positions=64, experts=4)
    model = decoder("mixtral", max_position_embeddings=64, **MOE)
    assert capabilities_of(model.train(), "m") == expected
    assert model.training
    assert capabilities_of(with_adapters(decoder("qwen2")), "m").experts == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_later_tokens_is_refused(dtype: torch.dtype) -> None:
    config = AutoConfig.for_model("xlnet", vocab_size=50, d_model=32, n_layer=2, n_head=2, d_inner=32)
    model: Any = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(10)  # as far from uniform as trained weights are
    with pytest.raises(InputError, match=r"'folder' .*xlnet.* is not causal"):
        capabilities_of(model, "folder")


def test_dora_on_a_row_of_zeros_is_refused() -> None:
    model: Any = decoder("llama", tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight[2] = 0.0
    assert capabilities_of(model, "m").causal
    spec = LoraSpec(rank=2, target_modules=["embed_tokens", "lm_head"], use_dora=True)
    with pytest.raises(InputError, match=r"DoRA 'm' computes NaN .*`model\.policy\.lora\.use_dora: false`"):
        capabilities_of(add_adapter(model, spec), "m")


def test_weights_without_content_are_not_tried() -> None:
    with torch.device("meta"):
        model = decoder("llama")
    assert capabilities_of(model, "m").causal is None


def test_what_cannot_run_on_tokens_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    model = decoder("llama")

    def needs_images(_module: nn.Module, _arguments: Any) -> None:
        raise ValueError("pixel_values are missing")

    model.register_forward_pre_hook(needs_images)
    with pytest.raises(InputError, match="token ids alone: pixel_values are missing"):
        capabilities_of(model, "m")


def test_what_wider_weights_take_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_decoder(tmp_path, "llama")
    AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    model, _ = build_policy(PolicySpec(source=source))
    count = sum(weight.numel() for weight in model.parameters()) / 1e9
    assert f"bfloat16 ({2 * count:.3g} GB)" in caplog.text
    assert f"they take {4 * count:.3g} GB" in caplog.text
    caplog.clear()
    build_policy(PolicySpec(source=source, dtype="bfloat16"))
    assert "GB" not in caplog.text


def test_logits_that_are_not_finite_are_no_sign_of_later_tokens(caplog: pytest.LogCaptureFixture) -> None:
    model = decoder("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    assert capabilities_of(model, "folder").causal is None
    assert "folder gives logits that are not finite" in caplog.text
