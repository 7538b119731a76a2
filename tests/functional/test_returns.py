import pytest
import torch

from dpr_lightning import functional as F
from tests import reference


def random_values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_returns_equal_the_twin(discount, width):
    reward, mask = random_values(5, width), reference.ragged_mask(5, width, seed=width)
    torch.testing.assert_close(
        F.returns_to_go(reward, mask, discount), reference.returns_to_go(reward, mask, discount), rtol=0, atol=1e-12
    )


def test_a_hand_computed_return():
    reward = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    returns = F.returns_to_go(reward, torch.ones(1, 3, dtype=torch.bool), 0.5)
    assert returns.tolist() == [[3.0, 4.0, 4.0]]


@pytest.mark.parametrize("discount", [-0.1, 1.01, float("nan")])
def test_a_discount_out_of_range_is_refused(discount):
    with pytest.raises(ValueError, match="expected a number in \\[0, 1\\]"):
        F.returns_to_go(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), discount)


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_shaping_equals_the_twin(discount):
    mask, terminated = reference.ragged_mask(6, 7), torch.tensor([True, True, False, False, True, False])
    reward, potential = random_values(6, 7), random_values(6, 8, seed=1)
    torch.testing.assert_close(
        F.shape_reward(reward, potential, mask, terminated, discount),
        reference.shape_reward(reward, potential, mask, terminated, discount),
        rtol=0,
        atol=1e-12,
    )


def test_shaping_telescopes_on_ragged_rows_with_gaps():
    """Σ r' = Σ r + Φ(last state) − Φ(first state), with Φ(terminal) = 0 and the last state kept where a row was cut."""
    mask, terminated = reference.ragged_mask(8, 9, seed=3), torch.arange(8) % 2 == 0
    reward, potential = random_values(8, 9), random_values(8, 10, seed=1)
    shaped = F.shape_reward(reward, potential, mask, terminated, 1.0)
    for b in range(8):
        indices = reference.acted(mask, b)
        expected = 0.0
        if indices:
            last = 0.0 if terminated[b] else float(potential[b, indices[-1] + 1])
            expected = float(reward[b, indices].sum()) + last - float(potential[b, indices[0]])
        assert float(shaped[b].sum()) == pytest.approx(expected, abs=1e-12)


def test_the_soft_advantage_is_the_log_probability():
    """log π = r + V(s') − V(s) for r = Q − V': shaping the recovered reward with V gives back log π, in nats."""
    logits = random_values(4, 7, 5)
    tokens = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(0))
    mask, terminated = reference.ragged_mask(4, 6), torch.tensor([True, False, True, False])
    value = logits.logsumexp(-1)
    quality = logits[:, :6].gather(-1, tokens[..., None]).squeeze(-1)
    reward = quality - F.shape_reward(torch.zeros(4, 6, dtype=torch.float64), value, mask, terminated) - value[:, :6]
    shaped = F.shape_reward(reward, value, mask, terminated, 1.0)
    torch.testing.assert_close(shaped[mask], F.token_logprobs(logits[:, :6], tokens)[mask], rtol=0, atol=1e-12)


def test_a_potential_without_its_last_state_is_refused():
    with pytest.raises(ValueError, match=r"potential has shape \[2, 3\], expected \[2, 4\]"):
        F.shape_reward(
            torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
        )
