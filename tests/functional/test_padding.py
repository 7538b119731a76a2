"""What lies outside the mask, NaN and Inf included, reaches neither a value nor a gradient."""

import pytest
import torch

from dpr_lightning import functional as F
from tests import reference

BATCH, WIDTH, VOCABULARY = 6, 5, 4
MASK = reference.ragged_mask(BATCH, WIDTH, seed=4)
TERMINATED = torch.arange(BATCH) % 2 == 0
TOKENS = torch.randint(VOCABULARY, (BATCH, WIDTH), generator=torch.Generator().manual_seed(0))


def random_values(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def per_token(seed):
    return random_values(BATCH, WIDTH, seed=seed)


def per_action(seed):
    return random_values(BATCH, WIDTH, VOCABULARY, seed=seed)


LOGPROB = -per_token(1).abs()
LOGPROBS, OTHER_LOGPROBS = per_action(2).log_softmax(-1), per_action(3).log_softmax(-1)

# name: (function of the tensors that get damaged outside the mask, those tensors)
CASES = {
    "masked_sum": (lambda x: F.masked_sum(x, MASK), [per_token(0)]),
    "masked_mean": (lambda x: F.masked_mean(x, MASK), [per_token(0)]),
    "masked_mean_rows": (lambda x: F.masked_mean(x, MASK, dim=1), [per_token(0)]),
    "token_logprobs": (lambda x: F.masked_sum(F.token_logprobs(x, TOKENS), MASK), [per_action(0)]),
    "entropy": (lambda p: F.entropy(p, MASK), [LOGPROBS]),
    "kl_divergence": (lambda p, q: F.kl_divergence(p, q, MASK), [LOGPROBS, OTHER_LOGPROBS]),
    "returns_to_go": (lambda r: F.returns_to_go(r, MASK, 0.7), [per_token(0)]),
    "returns_to_go_undiscounted": (lambda r: F.returns_to_go(r, MASK), [per_token(0)]),
    "returns_to_go_myopic": (lambda r: F.returns_to_go(r, MASK, 0.0), [per_token(0)]),
    "length_normalise": (lambda r: F.length_normalise(r, MASK), [per_token(0)]),
    "zscore_by_position": (lambda r: F.zscore_by_position(r, MASK), [per_token(0)]),
    "leave_one_out": (lambda r: F.leave_one_out_baseline(r, MASK, 3), [per_token(0)]),
    "batch_baseline": (lambda r: F.batch_baseline(r, MASK), [per_token(0)]),
    "position_baseline": (lambda r: F.position_baseline(r, MASK), [per_token(0)]),
    "response_baseline": (lambda r: F.response_baseline(r, MASK), [per_token(0)]),
    "whiten": (lambda r: F.whiten(r, MASK), [per_token(0)]),
    "sft": (lambda p: F.sft_loss(p, MASK, 5.0), [LOGPROB]),
    "dft": (lambda p: F.dft_loss(p, MASK, 5.0), [LOGPROB]),
    "iq_learn": (lambda x: F.iq_learn_loss(x, TOKENS, MASK, TERMINATED), [per_action(0)]),
    "iq_learn_v0": (lambda x: F.iq_learn_loss(x, TOKENS, MASK, TERMINATED, 0.9, "v0"), [per_action(0)]),
    "iq_learn_chi2": (
        lambda x: F.iq_learn_loss(x, TOKENS, MASK, TERMINATED | True, 0.9, chi2_alpha=0.5),
        [per_action(0)],
    ),
    "reinforce": (lambda p, a: F.reinforce_loss(p, a, MASK, 5.0), [LOGPROB, per_token(2)]),
    "all_actions": (lambda p, r: F.all_actions_loss(p, r, MASK, 5.0), [LOGPROBS, per_action(1)]),
    "clipped_surrogate": (
        lambda p, q, a: F.clipped_surrogate_loss(p, q, a, MASK, 5.0, 0.2)[0],
        [LOGPROB, per_token(2), per_token(3)],
    ),
    "clip_share": (
        lambda p, q, a: F.clipped_surrogate_loss(p, q, a, MASK, 5.0, 0.2)[1] + 0 * F.masked_sum(p, MASK),
        [LOGPROB, per_token(2), per_token(3)],
    ),
    "bound_unlikelihood": (
        lambda p, a: F.reinforce_loss(p, F.bound_unlikelihood(a, p, 0.1), MASK, 5.0),
        [LOGPROB, per_token(2)],
    ),
}


@pytest.mark.parametrize("damage", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", CASES)
def test_damage_outside_the_mask_changes_nothing(name, damage):
    function, clean = CASES[name]
    results = []
    for broken in (False, True):
        inputs = []
        for tensor in clean:
            outside = ~MASK.reshape(MASK.shape + (1,) * (tensor.dim() - 2))
            inputs.append(tensor.masked_fill(outside, damage if broken else 0.0).requires_grad_())
        value = function(*inputs)
        gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        results.append((value.detach(), gradients))
    (value, gradients), (broken_value, broken_gradients) = results
    assert torch.isfinite(value).all()
    assert torch.equal(value, broken_value)
    for left, right in zip(gradients, broken_gradients, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert torch.equal(left, right)
            assert (right[~MASK] == 0).all()


def test_shaping_ignores_potentials_of_states_nobody_acts_in():
    reward, potential = per_token(0), random_values(BATCH, WIDTH + 1, seed=1)
    used = torch.zeros(BATCH, WIDTH + 1, dtype=torch.bool)
    used[:, :WIDTH] = MASK
    for b in range(BATCH):  # a cut row is also worth what its last state is
        indices = reference.acted(MASK, b)
        if indices and not TERMINATED[b]:
            used[b, indices[-1] + 1] = True
    inputs = [reward.masked_fill(~MASK, torch.nan), potential.masked_fill(~used, torch.nan)]
    for tensor in inputs:
        tensor.requires_grad_()
    value = F.shape_reward(*inputs, MASK, TERMINATED, 0.7)
    assert torch.equal(value, F.shape_reward(reward, potential, MASK, TERMINATED, 0.7))
    for gradient in torch.autograd.grad(value.sum(), inputs):
        assert torch.isfinite(gradient).all()


def test_chi2_needs_the_state_a_row_was_cut_in_and_no_other():
    logits = random_values(BATCH, WIDTH + 1, VOCABULARY, seed=0)
    used = torch.zeros(BATCH, WIDTH + 1, dtype=torch.bool)
    used[:, :WIDTH] = MASK
    for b in range(BATCH):
        indices = reference.acted(MASK, b)
        if indices and not TERMINATED[b]:
            used[b, indices[-1] + 1] = True
    broken = logits.masked_fill(~used[..., None], torch.nan).requires_grad_()
    loss = F.iq_learn_loss(broken, TOKENS, MASK, TERMINATED, 0.7, chi2_alpha=0.5)
    assert loss == F.iq_learn_loss(logits, TOKENS, MASK, TERMINATED, 0.7, chi2_alpha=0.5)
    (gradient,) = torch.autograd.grad(loss, broken)
    assert torch.isfinite(gradient).all()
    assert (gradient[~used] == 0).all()
