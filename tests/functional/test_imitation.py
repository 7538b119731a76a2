import pytest
import torch

from dpr_lightning import functional as F
from tests import reference


def example(batch=6, width=5, vocabulary=4, seed=0, extra=0):
    """Ragged rows with gaps, one empty; half of them terminated, half cut."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, width + extra, vocabulary, dtype=torch.float64, generator=generator)
    tokens = torch.randint(vocabulary, (batch, width), generator=generator)
    return logits, tokens, reference.ragged_mask(batch, width, seed), torch.arange(batch) % 2 == 0


def close(left, right, tolerance=1e-12):
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("value_form", ["value_expert", "v0"])
@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("chi2_alpha", [None, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_iq_learn_equals_the_twin_that_writes_out_every_value(extra, value_form, discount, chi2_alpha, temperature):
    logits, tokens, mask, terminated = example(extra=extra, seed=3)
    logits.requires_grad_()
    options = {"discount": discount, "value_form": value_form, "chi2_alpha": chi2_alpha, "temperature": temperature}
    loss = F.iq_learn_loss(logits, tokens, mask, terminated, **options)
    expected = reference.iq_learn_loss(logits, tokens, mask, terminated, **options)
    close(loss, expected, 1e-10)
    close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0], 1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 1.0])
def test_value_expert_is_the_nll_for_every_discount(discount, temperature):
    """For τ ≠ 1 it is τ times the NLL of softmax(Q/τ)."""
    logits, tokens, mask, terminated = example()
    nll = torch.nn.functional.cross_entropy(logits[mask] / temperature, tokens[mask])
    loss = F.iq_learn_loss(logits, tokens, mask, terminated, discount, "value_expert", temperature=temperature)
    close(loss, temperature * nll, 1e-10)


def test_v0_is_the_nll_of_sequences_at_discount_one_only():
    logits, tokens, mask, terminated = example()
    nll = torch.nn.functional.cross_entropy(logits[mask], tokens[mask], reduction="sum") / len(tokens)
    close(F.iq_learn_loss(logits, tokens, mask, terminated, 1.0, "v0"), nll, 1e-10)
    assert abs(F.iq_learn_loss(logits, tokens, mask, terminated, 0.95, "v0") - nll) > 0.05


def test_chi2_sees_the_offset_of_logits_that_the_policy_ignores():
    logits, tokens, mask, terminated = example()
    offset = torch.randn(6, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = [F.iq_learn_loss(x, tokens, mask, terminated) for x in (logits, logits + offset)]
    with_chi2 = [F.iq_learn_loss(x, tokens, mask, terminated, chi2_alpha=0.5) for x in (logits, logits + offset)]
    close(plain[0], plain[1], 1e-12)
    assert abs(with_chi2[0] - with_chi2[1]) > 0.1


def test_chi2_bootstraps_from_the_state_a_row_was_cut_in():
    logits, tokens, mask, _ = example(extra=1)
    mask[:] = True
    cut = torch.zeros(6, dtype=torch.bool)
    moved = logits.clone()
    moved[:, -1] += 3.0  # raises V of the state after the last token and of nothing else
    loss = [F.iq_learn_loss(x, tokens, mask, cut, chi2_alpha=0.5) for x in (logits, moved)]
    assert abs(loss[0] - loss[1]) > 0.1
    ended = [F.iq_learn_loss(x, tokens, mask, ~cut, chi2_alpha=0.5) for x in (logits, moved)]
    close(ended[0], ended[1], 0)


def test_no_demonstrated_token_gives_a_zero_that_can_be_differentiated():
    logits, tokens, mask, terminated = example()
    logits.requires_grad_()
    for value_form in ("value_expert", "v0"):
        loss = F.iq_learn_loss(logits, tokens, mask & False, terminated, 0.9, value_form, 0.5)
        assert loss == 0
        assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@pytest.mark.parametrize("name", ["sft_loss", "dft_loss"])
def test_likelihood_losses_equal_their_twins(name):
    _, _, mask, _ = example()
    logprob = -torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    logprob.requires_grad_()
    loss, expected = getattr(F, name)(logprob, mask, 11.0), getattr(reference, name)(logprob, mask, 11.0)
    close(loss, expected)
    close(torch.autograd.grad(loss, logprob)[0], torch.autograd.grad(expected, logprob)[0])


def test_dft_follows_the_gradient_of_the_probability():
    """∇(sg[π]·log π) = ∇π."""
    logits, tokens, mask, _ = example()
    logits.requires_grad_()
    logprob = F.token_logprobs(logits, tokens)
    close(
        torch.autograd.grad(F.dft_loss(logprob, mask, 1.0), logits, retain_graph=True)[0],
        torch.autograd.grad(-logprob.exp()[mask].sum(), logits)[0],
    )


def test_options_out_of_range_are_refused():
    logits, tokens, mask, terminated = example()
    with pytest.raises(ValueError, match="value_form is 'v1', expected one of: value_expert, v0"):
        F.iq_learn_loss(logits, tokens, mask, terminated, value_form="v1")
    with pytest.raises(ValueError, match=r"chi2_alpha is 0\.0"):
        F.iq_learn_loss(logits, tokens, mask, terminated, chi2_alpha=0.0)
    with pytest.raises(ValueError, match=r"temperature is -1\.0"):
        F.iq_learn_loss(logits, tokens, mask, terminated, temperature=-1.0)
    with pytest.raises(ValueError, match="logits cover 4 positions, expected T = 5"):
        F.iq_learn_loss(logits[:, :4], tokens, mask, terminated)
    with pytest.raises(ValueError, match=r"terminated has shape \[2\], expected \[6\]"):
        F.iq_learn_loss(logits, tokens, mask, terminated[:2])
    with pytest.raises(ValueError, match=r"num_tokens is 0\.0"):
        F.sft_loss(logits[..., 0], mask, 0.0)
