"""Log-probabilities and states through the head, against whole logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedModel

from dpr_lightning.engine import (
    acted_logprobs,
    acted_states,
    action_logits,
    keeps_states,
    model_inputs,
    scored_actions,
    sequence_logprobs,
)
from dpr_lightning.engine import fused_head as head
from dpr_lightning.functional import token_logprobs
from dpr_lightning.live_bytes import LiveBytes

MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2}


def built(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).double().eval()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: built(LlamaConfig(**SMALL)),
    "capped": lambda: built(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.1)),
}


def tokens_of(mask: Tensor) -> Tensor:
    return torch.randint(3, 40, mask.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_whole_logits(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_BLOCK", 80)  # two states
    monkeypatch.setattr(model_inputs, "packs_rows", lambda _: packed)
    model, tokens = MODELS[name](), tokens_of(MASK)
    with torch.no_grad():
        whole = action_logits(model, tokens, MASK)
    expected = token_logprobs(whole.logits, whole.tokens).masked_fill(~whole.mask, 0.0)
    assert keeps_states(model) == (name == "plain")
    result = acted_logprobs(model, tokens, MASK)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    states = acted_states(model, tokens, MASK)
    assert (states.weight is None) == (name != "plain")
    acted = whole.mask.flatten().nonzero().squeeze(1)
    torch.testing.assert_close(states.logprobs(acted), whole.logits.log_softmax(-1)[whole.mask], atol=1e-12, rtol=1e-12)
    second = states.take(torch.tensor([1]), 3)
    torch.testing.assert_close(second.logprobs(torch.arange(3)), whole.logits.log_softmax(-1)[1, :3])


@pytest.mark.parametrize("name", MODELS)
def test_first_choices_are_those_of_whole_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_BLOCK", 80)  # two states
    model, tokens = MODELS[name](), tokens_of(MASK)
    with torch.no_grad():
        whole = action_logits(model, tokens, MASK)
    tokens[MASK] = torch.where(
        torch.arange(int(MASK.sum())) % 2 == 0, whole.logits.argmax(-1)[whole.mask], tokens[MASK]
    )
    with torch.no_grad():
        whole = action_logits(model, tokens, MASK)
    scored = scored_actions(model, tokens, MASK)
    torch.testing.assert_close(scored.logprob, token_logprobs(whole.logits, whole.tokens)[whole.mask])
    assert torch.equal(scored.is_first, (whole.logits.argmax(-1) == whole.tokens)[whole.mask])
    assert 0 < int(scored.is_first.sum()) < len(scored.is_first)
    blank = scored_actions(model, tokens, torch.zeros_like(MASK))  # of a rank that has no rows left
    assert len(blank.logprob) == len(blank.is_first) == 0


def test_no_logits_of_all_states_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's memory is that of a block, for any number of states."""
    monkeypatch.setattr(head, "_BLOCK", 2 * 2000)
    model = built(LlamaConfig(**{**SMALL, "vocab_size": 2000})).float()
    mask = torch.ones(8, 33, dtype=torch.bool)
    mask[:, 0] = False
    tokens = tokens_of(mask)
    keeps_states(model)  # which looks at the head once
    whole = 8 * 32 * 2000 * 4
    for score in (partial(sequence_logprobs, token_budget=10_000), scored_actions):
        with LiveBytes() as live:
            score(model, tokens, mask)
        assert live.peak < whole / 4
