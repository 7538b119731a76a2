"""A cache reaches a model's forward pass under the name that its version of transformers has for it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, GPTNeoXForCausalLM, LlamaForCausalLM, PreTrainedModel

from dpr_lightning.engine import half_precision
from dpr_lightning.engine.cache_argument import CACHE_ARGUMENTS, cache_argument
from dpr_lightning.engine.decoding import routes, sampling_route
from dpr_lightning.engine.decoding.routes import LIBRARY_CACHE, OWN_CACHE, Route
from tests.engine.decoding.test_routes import expect_scored, sampled
from tests.tiny import DECODER, decoder

INSTALLED = cache_argument(decoder("llama"))


class Output(dict[str, Any]):
    """What a forward pass returns, by name as key and as attribute."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class OldName:
    """A forward pass that takes and returns its cache under the name before transformers 5.24."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **named: Any) -> Output:
        output = super().forward(input_ids, **{INSTALLED: past_key_values}, **named)  # type: ignore[misc]
        return Output(logits=output.logits, past_key_values=output.get(INSTALLED))


class NewName:
    """The same from transformers 5.24 on."""

    def forward(self, input_ids: Tensor, cache: Any = None, **named: Any) -> Output:
        output = super().forward(input_ids, **{INSTALLED: cache}, **named)  # type: ignore[misc]
        return Output(logits=output.logits, cache=output.get(INSTALLED))


def model_with(names: type, base: type[PreTrainedModel], kind: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = type(base.__name__, (names, base), {})(AutoConfig.for_model(kind, **DECODER)).eval()
    return model


@pytest.mark.parametrize("names", [OldName, NewName])
@pytest.mark.parametrize(("base", "kind"), [(LlamaForCausalLM, "llama"), (GPTNeoXForCausalLM, "gpt_neox")])
@pytest.mark.parametrize("route", [OWN_CACHE, LIBRARY_CACHE])
def test_models_of_both_versions_decode_with_a_cache(
    names: type, base: type[PreTrainedModel], kind: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with(names, base, kind)
    assert sampling_route(model).name == OWN_CACHE
    if route != OWN_CACHE:
        monkeypatch.setitem(routes._routes, model, Route(route))
        monkeypatch.setattr(routes, "has_one_token_pass", lambda model: False)
    expect_scored(model, sampled(model))


@pytest.mark.parametrize("name", CACHE_ARGUMENTS[:2])
def test_attention_by_blocks_appends_to_the_cache_of_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "multiplies_bfloat16", lambda: True)
    layer: Any = decoder("llama").bfloat16().eval().model.layers[0].self_attn  # type: ignore[union-attr]
    lengths = []

    def update(key: Tensor, value: Tensor, index: int) -> tuple[Tensor, Tensor]:
        lengths.append((key.shape[2], index))
        return key, value

    hidden, table = torch.randn(2, 3, 64).bfloat16(), torch.ones(1, 3, 16).bfloat16()
    named: dict[str, Any] = {name: SimpleNamespace(update=update)}
    with torch.no_grad():
        half_precision.attended(layer, type(layer).forward, hidden, (table, table), **named)
    assert lengths == [(3, 0)]


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no cache"):
        cache_argument(nn.Linear(2, 2))
