"""Prompt keys stored once, against a copy for every row: products, memory and samples."""

import pytest
import torch
from torch import Tensor, nn

from dpr_lightning.engine.decoding.shared_prompt_cache import SharedPromptCache
from dpr_lightning.live_bytes import LiveBytes
from dpr_lightning.policies.outline import materialise
from dpr_lightning.policies.without_content import without_content
from dpr_lightning.rollouts import SamplingOptions, decode_longest, sample
from dpr_lightning.types import Rollouts
from tests.tiny import decoder

GROUPS, SAMPLES, HEADS, EACH, LENGTH, WIDTH = 4, 3, 2, 5, 7, 6


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "orders",
    [
        [],
        [[11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],  # the last row in the place of one that ended
        [[5, 0, 11, 4, 3]],  # no row answers the third prompt
        [[5, 0, 1, 4, 3]],  # nor the fourth: two of four are left
        [[5, 0, 11, 4, 3], [4, 1, 0], [2]],  # and one of them in the end
    ],
)
def test_products_are_those_with_a_copy_for_every_row(orders: list[list[int]], padded: bool) -> None:
    layers = [(random(GROUPS, HEADS, LENGTH, WIDTH), random(GROUPS, HEADS, LENGTH, WIDTH + layer)) for layer in (1, 2)]
    seen = torch.arange(LENGTH) >= torch.tensor([[0], [3], [1], [2]]) if padded else None
    prompts = SharedPromptCache(layers, seen, SAMPLES)
    of = torch.arange(GROUPS).repeat_interleave(SAMPLES)
    for order in orders:
        prompts.keep(torch.tensor(order))
        of = of[torch.tensor(order)]
    query, weight = random(len(of), HEADS, EACH, WIDTH), random(len(of), HEADS, EACH, LENGTH)
    for layer, (keys, values) in enumerate(layers):
        expected = query @ keys[of].transpose(-1, -2)
        if seen is not None:
            expected = expected.masked_fill(~seen[of][:, None, None], float("-inf"))
        torch.testing.assert_close(prompts.scores(layer, query), expected)
        torch.testing.assert_close(prompts.mixed(layer, weight), weight @ values[of])


def test_samples_under_autocast() -> None:
    """Under autocast, log-probabilities agree within half precision."""
    torch.manual_seed(0)
    model, token_ids, options = decoder("llama").eval(), [[3, 4, 5], [6, 7]], SamplingOptions(max_new_tokens=5)

    def draw() -> Rollouts:
        return sample(model, token_ids, options, stop_tokens=[9, 11, 13], pad_token=0, num_samples=6, seed=1)

    exact = draw()
    with torch.autocast("cpu", torch.bfloat16):
        result = draw()
    # A draw at the border between two tokens may fall to the other side.
    same = (exact.tokens == result.tokens).all(1)
    assert same.sum() >= 10
    torch.testing.assert_close(result.logprob[same], exact.logprob[same], atol=2e-2, rtol=0)
    assert not torch.equal(result.logprob[same], exact.logprob[same])


def bytes_of_sampling(model: nn.Module, prompts: int, samples: int, prompt: int, options: SamplingOptions) -> int:
    token_ids = [[2 + index % 40 for index in range(prompt)] for _ in range(prompts)]
    with LiveBytes() as live:
        sample(model, token_ids, options, stop_tokens=[], pad_token=0, num_samples=samples)
        return live.peak


def test_samples_have_no_copy_of_their_prompt() -> None:
    torch.manual_seed(0)
    model = decoder("llama").eval()
    options = SamplingOptions(max_new_tokens=4)
    token = 2 * 2 * 2 * 16 * 4  # keys and values, of 2 layers and 2 heads, 16 numbers of 4 bytes
    few, many = (bytes_of_sampling(model, 4, samples, 400, options) for samples in (2, 16))
    assert few > 4 * 400 * token
    assert many - few < 0.3 * (4 * 14) * 400 * token


@pytest.mark.parametrize("samples", [1, 8])
def test_what_sampling_takes_is_planned(samples: int) -> None:
    torch.manual_seed(0)
    options = SamplingOptions(max_new_tokens=100)
    model = decoder("llama").eval()
    measured = bytes_of_sampling(model, 32 // samples, samples, 100, options)
    with torch.device("meta"):
        outline = decoder("llama")
    with without_content(), LiveBytes() as live:
        model = materialise(outline)
        weights = live.live
        decode_longest(model, [[0] * 100] * (32 // samples), options, samples)
    assert live.peak - weights == pytest.approx(measured, rel=0.2)
