"""Logits of acted positions against the whole forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from dpr_lightning.engine import action_logits, disable_dropout, model_inputs, state_logits
from dpr_lightning.engine.forward import last_logits
from dpr_lightning.engine.model_inputs import packs_rows

# A reply, two turns with a gap, a row cut at the end, and a single action.
MASK = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 1, 0],
    ]
).bool()


@pytest.fixture(scope="module")
def policy(tiny_policy_folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_policy_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def soft_capped() -> torch.nn.Module:
    """An architecture that changes its logits after the head."""
    config = Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config).double().eval()


def pack(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """Pack rows or not, whatever the attention of a model."""
    monkeypatch.setattr(model_inputs, "packs_rows", lambda _: packed)


@pytest.mark.parametrize(
    ("name", "packed", "tolerance"),
    [
        ("policy", False, 1e-12),
        ("policy", True, 1e-12),
        ("soft_capped", False, 1e-12),
        ("soft_capped", True, 1e-7),  # eager attention rounds its softmax, now over a longer row, to float32
    ],
)
def test_action_logits_are_rows_of_the_whole_forward_pass(
    name: str, packed: bool, tolerance: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(monkeypatch, packed)
    model = request.getfixturevalue(name)
    tokens = torch.randint(3, 40, MASK.shape)
    whole = model(input_ids=tokens).logits
    scored = action_logits(model, tokens, MASK)
    assert scored.mask.sum(1).tolist() == MASK.sum(1).tolist()
    for row in range(len(MASK)):
        indices = MASK[row].nonzero().squeeze(1)
        count = len(indices)
        torch.testing.assert_close(scored.logits[row, :count], whole[row, indices - 1], atol=tolerance, rtol=0)
        assert scored.tokens[row, :count].tolist() == tokens[row, indices].tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_state_logits_add_the_state_after_the_last_action(
    packed: bool, policy: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(monkeypatch, packed)
    tokens = torch.randint(3, 40, MASK.shape)
    whole = policy(input_ids=tokens).logits
    scored = state_logits(policy, tokens, MASK)
    assert scored.logits.shape[1] == scored.tokens.shape[1] + 1
    for row in range(len(MASK)):
        indices = MASK[row].nonzero().squeeze(1)
        count = len(indices)
        torch.testing.assert_close(scored.logits[row, :count], whole[row, indices - 1], atol=1e-12, rtol=0)
        torch.testing.assert_close(scored.logits[row, count], whole[row, indices[-1]], atol=1e-12, rtol=0)


def test_packed_rows_have_the_gradients_of_padded_ones(
    policy: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(3, 40, MASK.shape)
    result = []
    for packed in (False, True):
        pack(monkeypatch, packed)
        scored = action_logits(policy, tokens, MASK)
        loss = scored.logits.log_softmax(-1).gather(-1, scored.tokens.unsqueeze(-1)).squeeze(-1)[scored.mask].sum()
        result.append(torch.autograd.grad(loss, list(policy.parameters())))
    torch.testing.assert_close(*result, atol=1e-11, rtol=0)


def test_packed_rows_are_as_long_as_their_tokens(policy: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing after a row's last action is computed; flash attention turns packing on."""
    seen: list[int] = []
    handle = policy.get_input_embeddings().register_forward_hook(
        lambda _module, arguments, _out: seen.append(arguments[0].numel())
    )
    for packed in (True, False):
        pack(monkeypatch, packed)
        action_logits(policy, torch.randint(3, 40, MASK.shape), MASK)
    handle.remove()
    assert seen == [6 + 7 + 8 + 7, MASK.numel()]
    assert not packs_rows(policy)
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    flash = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes))
    flash.config._attn_implementation = "flash_attention_2"
    assert packs_rows(flash)
    flash._is_stateful = True
    assert not packs_rows(flash)
    config = Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"], **sizes)
    convolution = Lfm2ForCausalLM(config)
    convolution.config._attn_implementation = "flash_attention_2"
    assert not packs_rows(convolution)


def test_padding_on_the_right_reaches_nothing(policy: torch.nn.Module) -> None:
    tokens = torch.randint(3, 40, MASK.shape)
    last = (MASK * torch.arange(MASK.shape[1])).amax(1, keepdim=True)
    other = torch.where(torch.arange(MASK.shape[1]) > last, 0, tokens)
    ours, theirs = (action_logits(policy, ids, MASK) for ids in (tokens, other))
    assert not torch.equal(tokens, other)
    torch.testing.assert_close(ours.logits[ours.mask], theirs.logits[theirs.mask], atol=0, rtol=0)


def test_the_head_is_given_back_after_an_error(policy: torch.nn.Module) -> None:
    tokens = torch.randint(3, 40, MASK.shape)
    with pytest.raises(IndexError):
        action_logits(policy, tokens + 10_000, MASK)
    assert policy(input_ids=tokens).logits.shape[1] == tokens.shape[1]


def test_dropout_is_off_in_every_mode() -> None:
    config = Gemma2Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, attention_dropout=0.5, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).train()
    tokens = torch.randint(3, 20, (2, 6))
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    disable_dropout(model)
    assert torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name", ["policy", "soft_capped"])
@torch.no_grad()
def test_the_last_logits_are_made_of_states_next_to_each_other(name: str, request: pytest.FixtureRequest) -> None:
    """With a slice of all states, the head's weights would be copied for every row."""
    model: Any = request.getfixturevalue(name)
    seen: list[torch.Tensor] = []
    tokens = torch.randint(3, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    watching = model.lm_head.register_forward_hook(lambda _module, arguments, _output: seen.append(arguments[0]))
    try:
        result = last_logits(model, input_ids=tokens)
    finally:
        watching.remove()
    assert [(states.shape[:2], states.is_contiguous()) for states in seen] == [((4, 1), True)]
    assert not model.lm_head._forward_pre_hooks
    torch.testing.assert_close(result, model(input_ids=tokens).logits[:, -1], atol=1e-12, rtol=1e-12)
