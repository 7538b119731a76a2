"""The one-token pass against the model's forward pass, and which models do not get it."""

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dpr_lightning.engine.decoding import one_token_attention
from dpr_lightning.engine.decoding import packed_linear as products
from dpr_lightning.engine.decoding.kv_cache import preallocated_cache
from dpr_lightning.engine.decoding.one_token import OneTokenPass, has_one_token_pass
from dpr_lightning.engine.kernels import compiling
from dpr_lightning.rollouts import SamplingOptions, sample
from tests.tiny import decoder, unknown_decoder

WAYS = ["kernels", "laid out", "as they are"]
KINDS: dict[str, Any] = {
    "llama": lambda: decoder("llama"),
    "llama_with_biases": lambda: decoder("llama", attention_bias=True, mlp_bias=True),
    "llama_of_long_texts": lambda: decoder("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "tied": lambda: decoder("llama", tie_word_embeddings=True),
    "mistral": lambda: decoder("mistral", sliding_window=None),
    "qwen2": lambda: decoder("qwen2"),
    "qwen3": lambda: decoder("qwen3", head_dim=32),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products by this package's kernels, by oneDNN with packed weights, or by the layers."""
    if request.param == "kernels":
        if compiling.load() is None:
            pytest.skip("there is no C++ compiler here")
    else:
        monkeypatch.setattr(compiling, "load", lambda: None)
        monkeypatch.setattr(products, "_MANY_WEIGHTS", 1 if request.param == "laid out" else 1 << 30)
    return str(request.param)


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = KINDS[kind]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # which begin as ones and zeros
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


@torch.no_grad()
def next_logits(model: Any, tokens: Tensor, attention: Tensor, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits after the last column of ``tokens`` [B, T], by a step with a cache, and by a pass over whole rows."""
    position = (attention.cumsum(1) - 1).clamp_min(0)
    cache = preallocated_cache(model, longest or tokens.shape[1])
    before = {"input_ids": tokens[:, :-1], "attention_mask": attention[:, :-1], "position_ids": position[:, :-1]}
    model(**before, past_key_values=cache, use_cache=True)
    result = OneTokenPass(model)(tokens[:, -1], position[:, -1], attention.bool(), cache.layers)
    fresh = model(input_ids=tokens, attention_mask=attention, position_ids=position, use_cache=False)
    return result, fresh.logits[:, -1]


@pytest.mark.parametrize("rows", [3, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_a_fresh_forward_pass(kind: str, rows: int, way: str) -> None:
    model = model_of(kind)
    assert has_one_token_pass(model)
    tokens = torch.randint(0, 50, (rows, 9), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(tokens)
    attention[0, :3] = 0
    result, fresh = next_logits(model, tokens, attention)
    torch.testing.assert_close(result, fresh, atol=2e-5, rtol=1e-5)


def test_adapters_act(way: str) -> None:
    options = {"target_modules": "all-linear", "r": 4, "init_lora_weights": False}
    model = get_peft_model(model_of("llama"), LoraConfig(**options)).eval()  # type: ignore[arg-type]
    assert has_one_token_pass(model)
    tokens = torch.randint(0, 50, (8, 6), generator=torch.Generator().manual_seed(1))
    result, fresh = next_logits(model, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(result, fresh, atol=2e-5, rtol=1e-5)
    with model.disable_adapter():
        plain, _ = next_logits(model, tokens, torch.ones_like(tokens))
    assert (plain - result).abs().max() > 1e-2


@pytest.mark.parametrize("by_products", [True, False])
@pytest.mark.parametrize("kind", ["llama_with_biases", "qwen3"])
def test_half_precision(kind: str, by_products: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least as near to float32 as the model's pass; with padding and preallocated columns."""
    monkeypatch.setattr(one_token_attention, "multiplies_bfloat16", lambda: by_products)
    model = model_of(kind).bfloat16()
    assert has_one_token_pass(model)
    tokens = torch.randint(0, 50, (24, 9), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(tokens)
    attention[0, :3] = 0
    result, fresh = next_logits(model, tokens, attention, longest=30)
    exact = next_logits(model.float(), tokens, attention)[1]
    assert (result - exact).square().mean() <= 1.2 * (fresh - exact).square().mean()


class Louder(nn.Module):
    """A gate that a checkpoint's own code might have."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * torch.nn.functional.silu(hidden)


def test_others_are_left_to_their_own_forward_pass(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    assert not has_one_token_pass(unknown_decoder())
    assert not has_one_token_pass(decoder("mistral", sliding_window=4))
    hooked: Any = model_of("llama")
    hooked.model.layers[0].register_forward_hook(lambda *_: None)
    assert not has_one_token_pass(hooked)
    strange: Any = model_of("llama")
    layer = strange.model.layers[0]
    plain = type(layer).forward
    layer.forward = lambda hidden, **options: 2 * plain(layer, hidden, **options)
    with caplog.at_level(logging.WARNING):
        assert not has_one_token_pass(strange)
    assert "its own forward pass" in caplog.text
    gated: Any = model_of("llama")
    gated.model.layers[0].mlp.act_fn = Louder()  # a module that both call
    assert has_one_token_pass(gated)


def test_samples_are_the_same_either_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen2")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)  # type: ignore[operator, union-attr]
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]

    def draw() -> Any:
        return sample(model, prompts, SamplingOptions(12), stop_tokens=[30, 34, 48], pad_token=0, num_samples=5, seed=2)

    fast = draw()
    monkeypatch.setattr("dpr_lightning.engine.decoding.routes.has_one_token_pass", lambda model: False)
    library = draw()
    assert torch.equal(fast.tokens, library.tokens)
    assert fast.terminated.any()
    torch.testing.assert_close(fast.logprob, library.logprob, atol=2e-5, rtol=0)
