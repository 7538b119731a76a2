"""Models with other states than keys: samples have the scored log-probabilities, on the tried route."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from dpr_lightning.engine import action_logits
from dpr_lightning.engine.decoding import routes, sampling_route
from dpr_lightning.engine.decoding.decoder_state import select_rows
from dpr_lightning.engine.decoding.routes import LIBRARY_CACHE, NO_CACHE, OWN_CACHE, Route
from dpr_lightning.errors import InputError
from dpr_lightning.functional import token_logprobs
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.types import Rollouts
from tests.architectures.models import tiny_model
from tests.tiny import decoder, with_adapters

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [9], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22]]
ROUTES = {
    "lfm2": OWN_CACHE,
    "qwen3_next": OWN_CACHE,
    "mamba": OWN_CACHE,
    "falcon_h1": OWN_CACHE,
    "jamba": OWN_CACHE,
    "gemma2": OWN_CACHE,
    "minimax": LIBRARY_CACHE,
    "rwkv": NO_CACHE,
    "recurrent_gemma": NO_CACHE,
}


def sampled(model: nn.Module, prompts: list[list[int]] = PROMPTS, samples: int = 3, **more: Any) -> Rollouts:
    options = SamplingOptions(12, **more.pop("options", {}))
    stops = {"stop_tokens": [1, 2, 3, 4, 5], "pad_token": 0, "seed": 1}
    return sample(model, prompts, options, num_samples=samples, **(stops | more))


def expect_scored(model: nn.Module, rollouts: Rollouts) -> None:
    with torch.no_grad():
        scored = action_logits(model, rollouts.tokens, rollouts.mask)
    expected = token_logprobs(scored.logits.float(), scored.tokens)
    torch.testing.assert_close(rollouts.logprob[scored.mask], expected[scored.mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", ROUTES)
def test_sampled_is_what_is_scored(kind: str, samples: int) -> None:
    """With prompts of several lengths, and rows that end one after the other."""
    model = tiny_model(kind)
    rollouts = sampled(model, samples=samples)
    assert sampling_route(model).name == ROUTES[kind]
    assert len(set(rollouts.mask.sum(1).tolist())) > 2
    expect_scored(model, rollouts)


@pytest.mark.parametrize("kind", ["lfm2", "minimax", "rwkv"])
def test_a_sample_does_not_depend_on_its_batch(kind: str) -> None:
    model = tiny_model(kind)
    together = sampled(model)
    for index, prompt in enumerate(PROMPTS):
        alone = sampled(model, [prompt], prompt_ids=[index])
        for sample_index in range(3):
            row = index * 3 + sample_index
            ours = alone.tokens[sample_index][alone.mask[sample_index]]
            assert torch.equal(ours, together.tokens[row][together.mask[row]])


@pytest.mark.parametrize("name", [OWN_CACHE, LIBRARY_CACHE, NO_CACHE])
def test_every_route_gives_the_same_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = decoder("llama").eval()
    model.get_output_embeddings().weight.data.mul_(20.0)  # type: ignore[operator, union-attr]
    expected = sampled(model, options={"batch_size": 7})
    monkeypatch.setitem(routes._routes, model, Route(name))
    monkeypatch.setattr(routes, "has_one_token_pass", lambda model: False)
    assert torch.equal(sampled(model, options={"batch_size": 7}).tokens, expected.tokens)


def test_several_models_of_several_kinds_answer_together() -> None:
    """One model needs prompts of equal length, so all get them."""
    models = [tiny_model(kind, seed=seed) for seed, kind in enumerate(("mistral", "lfm2", "rwkv"))]

    def mean(logprobs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(logprobs).mean(0)

    rollouts = sampled(models, combine=mean)  # type: ignore[arg-type]
    with torch.no_grad():
        scored = [action_logits(model, rollouts.tokens, rollouts.mask) for model in models]
    logits = mean([each.logits.log_softmax(-1) for each in scored])
    expected = token_logprobs(logits, scored[0].tokens)
    torch.testing.assert_close(rollouts.logprob * scored[0].mask, expected * scored[0].mask, atol=1e-5, rtol=0)


def test_adapters_act_in_recurrent_models() -> None:
    model = with_adapters(tiny_model("lfm2")).eval()
    expect_scored(model, sampled(model))
    assert sampling_route(model).name == OWN_CACHE


def test_a_model_without_a_cache_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("rwkv")
    with caplog.at_level(logging.WARNING):
        sampled(model)
        sampled(model)
    assert caplog.text.count("is sampled without a cache") == 1


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("llama", "one-token pass and key-value cache"),
        ("gemma2", "its own forward pass and this package's key-value cache"),
        ("minimax", "its library's cache (own cache: "),
        ("rwkv", "without a cache (own cache: "),
    ],
)
def test_the_path_is_logged_once(kind: str, path: str, caplog: pytest.LogCaptureFixture, with_kernels: bool) -> None:
    model = tiny_model(kind)
    with caplog.at_level(logging.INFO, logger=routes.__name__):
        sampled(model)
        sampled(model)
    lines = [record.message for record in caplog.records if f"This {kind} decodes by" in record.message]
    assert len(lines) == 1
    assert path in lines[0]
    assert ("compiled kernels" in lines[0]) == (kind == "llama" and with_kernels)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="bert cannot be sampled from"):
        sampling_route(tiny_model("bert"))


def test_a_cache_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose states padding changes, which the trial's logits show."""
    monkeypatch.setattr("dpr_lightning.engine.decoding.cached_state.is_recurrent", lambda layer: False)
    model = tiny_model("mamba")
    assert sampling_route(model).name == LIBRARY_CACHE
    expect_scored(model, sampled(model))


def test_half_precision_takes_the_same_route() -> None:
    for kind in ("qwen3_next", "mixtral"):
        assert sampling_route(tiny_model(kind).bfloat16()).name == OWN_CACHE


def test_in_shards_the_configuration_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial would be passes that other ranks do not run."""
    monkeypatch.setattr(routes, "fetches_weights", lambda model: True)
    names = {kind: sampling_route(tiny_model(kind)).name for kind in ("gemma2", "lfm2", "rwkv")}
    assert names == {"gemma2": OWN_CACHE, "lfm2": NO_CACHE, "rwkv": NO_CACHE}


def test_rows_are_selected_however_a_cache_nests_them() -> None:
    class SomeCache:
        def __init__(self) -> None:
            self.states = {0: (torch.arange(6.0).view(3, 2), None), 1: [torch.arange(3.0).view(3, 1)]}
            self.length = torch.tensor([3])

    cache = select_rows(SomeCache(), torch.tensor([2, 2, 0, 1]), 3)
    assert cache.states[0][0].tolist() == [[4.0, 5.0], [4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]
    assert cache.states[1][0].tolist() == [[2.0], [2.0], [0.0], [1.0]]
    assert cache.length.tolist() == [3]
