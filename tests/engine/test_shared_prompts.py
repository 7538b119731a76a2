"""Prompts read once for all the rows that answer them, against rows read separately."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.engine import Part, acted_logprobs, acted_loss, acted_states
from dpr_lightning.engine.shared_prompts import with_shared_prompts
from tests.tiny import decoder, unknown_decoder, with_adapters

KINDS: dict[str, Any] = {
    "llama": lambda: decoder("llama"),
    "eager": lambda: decoder("llama", attn_implementation="eager"),
    "qwen3": lambda: decoder("qwen3", head_dim=8),
    "lora": lambda: with_adapters(decoder("llama")),
}
PROMPTS = [9, 6, 9]
LENGTHS = [[13, 16, 11, 14], [9, 8, 14, 7], [10, 17, 12, 10]]


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = KINDS[kind]().double()
    return model.eval()


def answers(*, shuffled: bool = True) -> tuple[Tensor, Tensor]:
    """Four answers to each of three prompts, two of which are of one length; one answer is empty."""
    generator = torch.Generator().manual_seed(1)
    tokens, mask = torch.zeros(12, 17, dtype=torch.long), torch.zeros(12, 17, dtype=torch.bool)
    for index, (prompt, lengths) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        shared = torch.randint(2, 50, (prompt,), generator=generator)
        for row, length in enumerate(lengths, 4 * index):
            tokens[row, :prompt] = shared
            tokens[row, prompt:length] = torch.randint(2, 50, (length - prompt,), generator=generator)
            mask[row, prompt:length] = True
    mask[5] = False
    order = torch.randperm(12, generator=generator) if shuffled else torch.arange(12)
    return tokens[order], mask[order]


def weighted(logprob: Tensor, part: Part) -> Tensor:
    weights = torch.linspace(-1.0, 2.0, 43, dtype=logprob.dtype)[part.rows]
    return (weights * logprob).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_rows_on_their_own(kind: str) -> None:
    model = model_of(kind)
    tokens, mask = answers()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    alone = acted_loss(model, tokens, mask, weighted)
    expected = torch.autograd.grad(alone.loss, trained)
    assert with_shared_prompts(model, tokens, mask) is not None
    shared = acted_loss(model, tokens, mask, weighted, sampled=True)
    result = torch.autograd.grad(shared.loss, trained)
    # As near as transformers' norms are, which compute in float32 whatever they are given.
    for ours, theirs in zip((*shared[:3], *result), (*alone[:3], *expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_scores_are_those_of_rows_on_their_own() -> None:
    model = model_of("llama")
    tokens, mask = answers()
    rows = [acted_logprobs(model, tokens[[row]], mask[[row]])[0] for row in range(12)]
    result = acted_logprobs(model, tokens, mask)
    states = acted_states(model, tokens, mask)
    for row, alone in enumerate(rows):
        torch.testing.assert_close(result[row, : len(alone)], alone, atol=1e-6, rtol=1e-6)
        index = row * result.shape[1] + torch.arange(len(alone))
        actions = tokens[row, mask[row]]
        torch.testing.assert_close(
            states.logprobs(index).gather(-1, actions[:, None])[:, 0], alone, atol=1e-6, rtol=1e-6
        )


def operations(model: nn.Module, tokens: Tensor, mask: Tensor) -> int:
    acted_logprobs(model, tokens, mask)  # which looks at the head once
    with FlopCounterMode(display=False) as counter:
        acted_logprobs(model, tokens, mask)
    return counter.get_total_flops()


def test_eight_answers_read_their_prompt_once() -> None:
    model = model_of("llama")
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(2, 50, (1, 24), generator=generator).expand(8, -1)
    answers_of = torch.randint(2, 50, (8, 24), generator=generator)
    mask = torch.zeros(8, 48, dtype=torch.bool)
    mask[:, 24:] = True
    answered = torch.cat([shared, answers_of], 1)
    other = answered.clone()
    other[:, 0] = torch.arange(2, 10)
    ratio = operations(model, answered, mask) / operations(model, other, mask)
    # 8·48 tokens against 23 + 8·25, and the products of the head, which are the same.
    assert 223 / 384 < ratio < 0.72


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (unknown_decoder, "an unknown kind"),
        (lambda: decoder("mistral", sliding_window=4), "a window"),
    ],
)
def test_models_that_must_read_every_row(model: Any, why: str) -> None:
    assert with_shared_prompts(model(), *answers()) is None, why


def test_it_is_left_where_it_does_not_pay_or_cannot_be() -> None:
    model: Any = model_of("llama")
    tokens, mask = answers()
    assert with_shared_prompts(model, tokens[:1], mask[:1]) is None
    different = tokens.clone()
    different[:, 0] = torch.arange(2, 14)
    assert with_shared_prompts(model, different, mask) is None
    every = torch.ones_like(mask)
    assert with_shared_prompts(model, tokens, every) is None
    model.gradient_checkpointing_enable()
    assert with_shared_prompts(model, tokens, mask) is not None  # nothing is recomputed while it evaluates
    assert with_shared_prompts(model.train(), tokens, mask) is None
