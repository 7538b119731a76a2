import pytest
import torch

from dpr_lightning import functional as F
from tests import reference


@pytest.mark.parametrize("seed", range(4))
def test_action_positions_equal_the_twin(seed):
    mask = reference.ragged_mask(6, 9, seed)
    mask[:, 0] = False
    position, action_mask = F.action_positions(mask)
    expected_position, expected_mask = reference.action_positions(mask)
    assert torch.equal(position, expected_position)
    assert torch.equal(action_mask, expected_mask)
    assert position.dtype == torch.int64


def test_positions_of_missing_actions_leave_room_for_the_logits_before_them():
    position, action_mask = F.action_positions(torch.tensor([[False, True, True], [False, False, False]]))
    assert (position[~action_mask] - 1 >= 0).all()


def test_a_batch_without_actions_has_no_columns():
    position, action_mask = F.action_positions(torch.zeros(3, 5, dtype=torch.bool))
    assert position.shape == action_mask.shape == (3, 0)


def test_a_first_token_cannot_be_an_action():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[2, 0] = True
    with pytest.raises(ValueError, match=r"mask\[2, 0\] is True"):
        F.action_positions(mask)


def test_sums_and_means_equal_the_twin():
    mask = reference.ragged_mask(5, 7)
    value = torch.randn(5, 7, dtype=torch.float64)
    total = reference.masked_sum(value, mask)
    torch.testing.assert_close(F.masked_sum(value, mask), total, rtol=0, atol=1e-12)
    torch.testing.assert_close(F.masked_mean(value, mask), total / mask.sum(), rtol=0, atol=1e-12)
    for b, mean in enumerate(F.masked_mean(value, mask, dim=1)):
        inside = [float(value[b, t]) for t in reference.acted(mask, b)]
        assert float(mean) == pytest.approx(sum(inside) / len(inside) if inside else 0.0, abs=1e-12)


def test_the_mean_of_nothing_is_zero():
    assert F.masked_mean(torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_next_action_equals_the_twin(seed):
    mask = reference.ragged_mask(6, 7, seed)
    assert torch.equal(F.next_action(mask), reference.next_action(mask))
