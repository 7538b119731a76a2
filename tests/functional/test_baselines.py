import pytest
import torch

from dpr_lightning import functional as F
from tests import reference


def ragged_returns(batch=6, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    returns = torch.randn(batch, width, dtype=torch.float64, generator=generator)
    return returns, reference.ragged_mask(batch, width, seed)


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group_size", [2, 3, 6])
def test_leave_one_out_equals_the_twin(group_size):
    returns, mask = ragged_returns()
    close(
        F.leave_one_out_baseline(returns, mask, group_size),
        reference.leave_one_out_baseline(returns, mask, group_size),
    )


@pytest.mark.parametrize("name", ["batch_baseline", "position_baseline", "response_baseline", "whiten"])
@pytest.mark.parametrize("seed", range(3))
def test_baselines_equal_their_twins(name, seed):
    returns, mask = ragged_returns(seed=seed)
    close(getattr(F, name)(returns, mask), getattr(reference, name)(returns, mask))


@pytest.mark.parametrize("name", ["batch_baseline", "position_baseline", "response_baseline", "whiten"])
def test_a_batch_without_actions_gives_zeros(name):
    returns = torch.full((2, 3), torch.nan)
    assert (getattr(F, name)(returns, torch.zeros(2, 3, dtype=torch.bool)) == 0).all()


def test_whitening_equal_advantages_gives_zeros():
    assert (F.whiten(torch.full((3, 7), 0.1), torch.ones(3, 7, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize(
    "name", ["batch_baseline", "position_baseline", "whiten", "zscore_by_position"]
)  # fmt: skip
def test_ranks_that_share_their_sums_equal_one_big_batch(name):
    """Two ranks run in turn: what one asks to be summed is recorded, then given to the other."""
    returns, mask = ragged_returns(8, 5)
    function = getattr(F, name)
    whole = function(returns, mask)
    halves = (slice(0, 3), slice(3, 8))

    def run(half, answers):
        calls = []

        def reduce(tensor):
            calls.append(tensor)
            return answers[len(calls) - 1] if len(calls) <= len(answers) else tensor

        return function(returns[half], mask[half], reduce), calls

    answers = []
    for _ in range(2):  # the second request depends on the answer to the first
        requests = [run(half, answers)[1] for half in halves]
        answers = [left + right for left, right in zip(*requests, strict=True)]
    for half in halves:
        close(run(half, answers)[0], whole[half])


def test_groups_must_be_whole():
    returns, mask = ragged_returns(5)
    with pytest.raises(ValueError, match="5 rows do not divide into groups of 2"):
        F.leave_one_out_baseline(returns, mask, 2)
    with pytest.raises(ValueError, match="group_size is 1"):
        F.leave_one_out_baseline(returns, mask, 1)
