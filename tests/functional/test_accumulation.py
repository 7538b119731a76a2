"""The parts of an optimizer step, each normalised by what the whole step holds, add up to one big batch."""

import pytest
import torch

from dpr_lightning import functional as F
from tests import reference

BATCH, WIDTH, VOCABULARY = 7, 6, 5
MASK = reference.ragged_mask(BATCH, WIDTH, seed=2)
TERMINATED = torch.arange(BATCH) % 2 == 0
TOKENS = torch.randint(VOCABULARY, (BATCH, WIDTH), generator=torch.Generator().manual_seed(0))
GENERATOR = torch.Generator().manual_seed(1)
FEATURES, ADVANTAGE = (
    torch.randn(BATCH, WIDTH, length, dtype=torch.float64, generator=GENERATOR) for length in (3, VOCABULARY)
)
NUM_TOKENS = MASK.sum().double()


def sampled(logits, rows):
    return F.token_logprobs(logits, TOKENS[rows])


LOSSES = {
    "sft": lambda x, rows: F.sft_loss(sampled(x, rows), MASK[rows], NUM_TOKENS),
    "dft": lambda x, rows: F.dft_loss(sampled(x, rows), MASK[rows], NUM_TOKENS),
    "reinforce": lambda x, rows: F.reinforce_loss(sampled(x, rows), ADVANTAGE[rows][..., 0], MASK[rows], NUM_TOKENS),
    "all_actions": lambda x, rows: F.all_actions_loss(x.log_softmax(-1), ADVANTAGE[rows], MASK[rows], NUM_TOKENS),
    "clipped": lambda x, rows: F.clipped_surrogate_loss(
        sampled(x, rows), ADVANTAGE[rows][..., 1], ADVANTAGE[rows][..., 0], MASK[rows], NUM_TOKENS, 0.2
    )[0],
    "value_expert": lambda x, rows: F.iq_learn_loss(
        x, TOKENS[rows], MASK[rows], TERMINATED[rows], 0.9, chi2_alpha=0.5, normaliser=NUM_TOKENS
    ),
    "v0": lambda x, rows: F.iq_learn_loss(
        x, TOKENS[rows], MASK[rows], TERMINATED[rows], 0.9, "v0", chi2_alpha=0.5, normaliser=float(BATCH)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_accumulated_step_equals_one_big_batch(name):
    weight = torch.randn(3, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def step(parts):
        parameter = weight.clone().requires_grad_()
        total = 0.0
        for rows in parts:
            loss = LOSSES[name](FEATURES[rows] @ parameter, rows)
            loss.backward()
            total += float(loss.detach())
        return total, parameter.grad

    whole, gradient = step([slice(0, BATCH)])
    # a part may hold the empty row alone
    parts, accumulated = step([slice(0, 1), slice(1, 2), slice(2, 4), slice(4, BATCH)])
    assert gradient.abs().max() > 1e-3
    assert parts == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(accumulated, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_form", ["value_expert", "v0"])
def test_the_batch_normalises_itself_where_no_normaliser_is_given(value_form):
    logits = FEATURES @ torch.ones(3, VOCABULARY, dtype=torch.float64)
    whole = {"value_expert": NUM_TOKENS, "v0": float(BATCH)}[value_form]
    arguments = (logits, TOKENS, MASK, TERMINATED, 0.9, value_form)
    loss = F.iq_learn_loss(*arguments, normaliser=whole)
    torch.testing.assert_close(F.iq_learn_loss(*arguments), loss, rtol=0, atol=1e-12)
