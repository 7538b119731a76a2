"""The loss of acted tokens with the fused head, and without it where the head is more than a product."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedModel

from dpr_lightning.engine import Part, acted_loss, action_logits, model_inputs
from dpr_lightning.engine import training_loss as module
from dpr_lightning.functional import all_actions_loss, entropy
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy

MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2}


def squares(logprob: Tensor, part: Part) -> Tensor:
    """A loss that is not linear in the log-probability."""
    weights = torch.linspace(0.5, 2.0, 7, dtype=logprob.dtype)[part.rows]
    return (weights * logprob.square()).sum()


def built(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).double()
    return model


MODELS = {
    "tied": lambda: built(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "untied": lambda: built(LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "capped": lambda: built(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.1)),
}


@contextmanager
def counted() -> Iterator[list[int]]:
    calls: list[int] = []
    real = module.head_loss

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*arguments, **options)

    module.head_loss = counting
    try:
        yield calls
    finally:
        module.head_loss = real


@pytest.mark.parametrize("name", list(MODELS))
def test_values_of_every_token_go_through_either_way(name: str) -> None:
    model = MODELS[name]()
    tokens = torch.randint(3, 40, MASK.shape, generator=torch.Generator().manual_seed(1))
    reward = torch.randn(7, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = action_logits(model, tokens, MASK)
    logprobs = whole.logits.log_softmax(-1)[whole.mask]
    every = all_actions_loss(logprobs[None], (reward - 0.5 * logprobs)[None], torch.ones(1, 7, dtype=torch.bool), 1.0)
    logprob = logprobs.gather(-1, whole.tokens[whole.mask][:, None]).squeeze(-1)
    expected = torch.autograd.grad(
        squares(logprob, Part(slice(0, 7), logprobs.amax(-1))) + every, list(model.parameters())
    )
    result = acted_loss(model, tokens, MASK, squares, lambda logprobs, part: reward[part] - 0.5 * logprobs)
    for ours, theirs in zip(torch.autograd.grad(result.loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_it_is_the_loss_of_whole_logits(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_inputs, "packs_rows", lambda _: packed)
    model = MODELS[name]()
    tokens = torch.randint(3, 40, MASK.shape, generator=torch.Generator().manual_seed(1))
    logits = action_logits(model, tokens, MASK)
    logprobs = logits.logits.log_softmax(-1)
    logprob = logprobs.gather(-1, logits.tokens.unsqueeze(-1)).squeeze(-1)
    loss = squares(logprob[logits.mask], Part(slice(0, 7), logprob))
    weights = list(model.parameters())
    expected = torch.autograd.grad(loss, weights)
    with counted() as calls:
        result = acted_loss(model, tokens, MASK, squares)
    assert len(calls) == (0 if name == "capped" else 1)
    torch.testing.assert_close(result.loss, loss, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(result.logprob, logprob.detach().masked_fill(~logits.mask, 0.0), atol=1e-12, rtol=1e-12)
    spread = entropy(logprobs.detach()).masked_fill(~logits.mask, 0.0)
    torch.testing.assert_close(result.entropy, spread, atol=1e-12, rtol=1e-12)
    assert torch.equal(result.tokens, logits.tokens)
    assert torch.equal(result.mask, logits.mask)
    for ours, theirs in zip(torch.autograd.grad(result.loss, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_a_model_is_as_it_was() -> None:
    model = MODELS["tied"]()
    tokens = torch.randint(3, 40, MASK.shape)
    before = model(input_ids=tokens).logits
    with pytest.raises(ZeroDivisionError):
        acted_loss(model, tokens, MASK, lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_a_head_with_a_bias_is_left_alone() -> None:
    model = MODELS["untied"]()
    model.lm_head = nn.Linear(16, 40).double()
    tokens = torch.randint(3, 40, MASK.shape)
    with counted() as calls:
        result = acted_loss(model, tokens, MASK, squares)
    assert not calls
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert model.lm_head.bias.grad is not None


def test_adapters_learn_through_it(tiny_policy_folder: Path) -> None:
    policy, _ = build_policy(PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(rank=2)))
    tokens = torch.randint(3, 40, MASK.shape)
    with counted() as calls:
        acted_loss(policy, tokens, MASK, squares).loss.backward()  # type: ignore[no-untyped-call]
    assert calls
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in trained)
    assert all(weight.grad is None for weight in policy.parameters() if not weight.requires_grad)


def test_without_gradients_nothing_is_kept() -> None:
    model = MODELS["tied"]()
    with torch.no_grad():
        result = acted_loss(model, torch.randint(3, 40, MASK.shape), MASK, squares)
    assert not result.loss.requires_grad


@pytest.mark.parametrize("name", list(MODELS))
def test_a_loss_sees_the_most_probable_token(name: str) -> None:
    model = MODELS[name]()
    tokens = torch.randint(3, 40, MASK.shape, generator=torch.Generator().manual_seed(1))
    whole = action_logits(model, tokens, MASK)
    logprobs = whole.logits.log_softmax(-1)[whole.mask]
    logprob = logprobs.gather(-1, whole.tokens[whole.mask][:, None]).squeeze(-1)
    unsure = logprobs.amax(-1) < logprobs.amax(-1).median()
    expected = logprob[unsure].square().sum()
    gradients = torch.autograd.grad(expected, list(model.parameters()))

    def of_unsure(logprob: Tensor, part: Part) -> Tensor:
        assert not part.best.requires_grad
        torch.testing.assert_close(part.best, logprobs.detach().amax(-1)[part.rows])
        return (unsure[part.rows] * logprob.square()).sum()

    result = acted_loss(model, tokens, MASK, of_unsure)
    torch.testing.assert_close(result.loss, expected)
    for ours, theirs in zip(torch.autograd.grad(result.loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
