import math

import pytest
import torch

from dpr_lightning import functional as F
from dpr_lightning.functional import logprobs as module
from tests import reference


def random_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def random_tokens(batch, width, vocabulary, seed=0):
    return torch.randint(vocabulary, (batch, width), generator=torch.Generator().manual_seed(seed))


def test_token_logprobs_equal_the_twin():
    logits, tokens = random_logits(3, 4, 6), random_tokens(3, 4, 6)
    torch.testing.assert_close(
        F.token_logprobs(logits, tokens), reference.token_logprobs(logits, tokens), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("block", [1, 13, 1 << 22])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_blocks_change_neither_values_nor_gradients(monkeypatch, block, temperature):
    monkeypatch.setattr(module, "_BLOCK", block)
    logits, tokens = random_logits(3, 5, 7).requires_grad_(), random_tokens(3, 5, 7)
    weights = random_logits(2, 3, 5, seed=1)
    logprob, normaliser = F.token_logprobs_and_normaliser(logits, tokens, temperature)
    (gradient,) = torch.autograd.grad((weights[0] * logprob + weights[1] * normaliser).sum(), logits)

    whole = (logits / temperature).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    total = (logits / temperature).logsumexp(-1)
    (expected,) = torch.autograd.grad((weights[0] * whole + weights[1] * total).sum(), logits)
    torch.testing.assert_close(logprob, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(normaliser, total, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_huge_logits_overflow_nothing():
    logits = torch.tensor([[[1e4, 1e4 - 1.0, -1e4]]], dtype=torch.float64)
    expected = -math.log(1 + math.exp(-1.0))
    assert float(F.token_logprobs(logits, torch.tensor([[0]]))) == pytest.approx(expected, abs=1e-12)


def test_a_large_offset_costs_float32_no_digits():
    logits = random_logits(2, 3, 50)
    shifted = (logits.float() + 4096.0) - 4096.0  # what float32 keeps of logits around 4096
    tokens = random_tokens(2, 3, 50)
    exact = F.token_logprobs(shifted.double(), tokens)
    torch.testing.assert_close(F.token_logprobs(shifted + 4096.0, tokens).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(dtype):
    logits, tokens = random_logits(2, 3, 11).to(dtype), random_tokens(2, 3, 11)
    logits.requires_grad_()
    logprob = F.token_logprobs(logits, tokens)
    assert logprob.dtype == torch.float32
    torch.testing.assert_close(
        logprob.double(), reference.token_logprobs(logits.detach().double(), tokens), rtol=0, atol=1e-6
    )
    logprob.sum().backward()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_as_large_as_the_logits_is_kept_besides_them(dtype):
    logits, tokens = random_logits(4, 8, 1000).to(dtype).requires_grad_(), random_tokens(4, 8, 1000)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        F.token_logprobs(logits, tokens)
    large = [x for x in saved if x.numel() >= logits.numel()]
    assert [x.data_ptr() for x in large] == [logits.data_ptr()]
    assert sum(x.numel() for x in saved) < 1.1 * logits.numel()


def test_a_banned_token_has_no_probability_and_no_gradient():
    logits = random_logits(1, 2, 4)
    logits[..., 2] = -math.inf
    logits.requires_grad_()
    logprob = F.token_logprobs(logits, torch.tensor([[0, 1]]))
    logprob.sum().backward()
    assert torch.isfinite(logprob).all()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[..., 2] == 0).all()
    assert float(F.token_logprobs(logits, torch.tensor([[2, 2]])).max().detach()) == -math.inf


@pytest.mark.parametrize("token", [-100, 4])
def test_a_token_outside_the_vocabulary_is_named(token):
    with pytest.raises(ValueError, match="vocabulary of 4"):
        F.token_logprobs(torch.zeros(1, 1, 4), torch.tensor([[token]]))


def distributions(seed, holes):
    logits = random_logits(2, 3, 5, seed=seed)
    logits[..., holes] = -math.inf
    return logits.log_softmax(-1)


def test_entropy_equals_the_twin_with_actions_of_probability_zero():
    logprobs = distributions(0, [1, 3]).requires_grad_()
    result = F.entropy(logprobs)
    torch.testing.assert_close(result, reference.entropy(logprobs.detach()), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(result.sum(), logprobs)
    assert torch.isfinite(gradient).all()


def test_entropy_of_the_uniform_distribution():
    uniform = torch.full((1, 2, 8), -math.log(8.0), dtype=torch.float64)
    torch.testing.assert_close(F.entropy(uniform), torch.full((1, 2), math.log(8.0), dtype=torch.float64))


def test_kl_divergence_equals_the_twin_and_is_zero_to_itself():
    logp, logq = distributions(0, [1]).requires_grad_(), distributions(1, [1]).requires_grad_()
    result = F.kl_divergence(logp, logq)
    torch.testing.assert_close(result, reference.kl_divergence(logp.detach(), logq.detach()), rtol=0, atol=1e-12)
    assert (result > 0).all()
    assert F.kl_divergence(logp, logp).abs().max() == 0
    for gradient in torch.autograd.grad(result.sum(), [logp, logq]):
        assert torch.isfinite(gradient).all()


def test_kl_divergence_is_infinite_where_only_q_is_zero():
    assert torch.isinf(F.kl_divergence(distributions(0, []), distributions(1, [2]))).all()
    assert torch.isfinite(F.kl_divergence(distributions(0, [2]), distributions(1, []))).all()
