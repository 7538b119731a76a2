"""Prompts that are read in parts, against one pass over all of them."""

from typing import Any

import pytest
import torch

from dpr_lightning.engine import Lockstep
from dpr_lightning.engine.decoding import prefill as reading
from dpr_lightning.engine.decoding import sampling_route
from dpr_lightning.engine.decoding.cached_state import CachedState
from dpr_lightning.engine.decoding.prefill import prefill_prompts
from dpr_lightning.live_bytes import LiveBytes
from dpr_lightning.rollouts import SamplingOptions, sample
from tests.tiny import decoder, unknown_decoder

PROMPTS = [[3], [5, 6], [8, 9, 7], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]]
MODELS: dict[str, Any] = {
    "known": lambda: decoder("llama"),
    "unknown": unknown_decoder,
    "with a window": lambda: decoder("mistral", sliding_window=4),
}


def test_parts_are_neighbours_of_so_many_tokens() -> None:
    lengths = [1, 2, 3, 5, 5, 20, 2]
    parts = [lengths[part] for part in reading._parts(lengths, 10)]
    assert parts == [[1, 2, 3], [5, 5], [20], [2]]


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_those_of_one_pass(kind: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    sampling_route(model)  # tries a few tokens, once
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))

    def draw() -> Any:
        passes.clear()
        options = SamplingOptions(6)
        return sample(model, PROMPTS, options, stop_tokens=[30, 34, 48], pad_token=0, num_samples=samples, seed=2)

    whole, count = draw(), len(passes)
    monkeypatch.setattr(reading, "TOKENS_AT_ONCE", 6)
    parts = draw()
    assert len(passes) - count == (3 if kind != "with a window" else 0)
    assert torch.equal(whole.tokens, parts.tokens)
    torch.testing.assert_close(whole.logprob, parts.logprob, atol=2e-5, rtol=0)


def test_less_memory_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama").eval()
    peaks = []
    for at_once in (16384, 100):
        monkeypatch.setattr(reading, "TOKENS_AT_ONCE", at_once)
        with LiveBytes() as live, torch.no_grad():
            state = CachedState(model, 8)
            read = prefill_prompts([state], [[1] * 50] * 40, 0, torch.device("cpu"), Lockstep([model]))
            state.start(read.attention, read.length, 1)
        peaks.append(live.peak)
    saved = 40 * 50 * 2 * 2 * 2 * 16 * 4
    # Half of it twice, while one of the two layers is put together.
    assert 1.5 * saved <= peaks[1] < 1.9 * saved
    assert peaks[0] > 2.9 * saved
