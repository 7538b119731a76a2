"""The plan of an epoch: what it holds, how large its batches are, and how ranks share it."""

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpr_lightning.data.batching import PlannedBatch, TokenBudgetBatchSampler
from dpr_lightning.errors import InputError


def lengths(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Long-tailed, as those of demonstrations are."""
    random = np.random.default_rng(seed)
    return np.clip(random.lognormal(4.0, 0.7, count), 3, 2000).astype(np.int64)


def samplers(data: NDArray[np.int64], world_size: int = 1, **options: Any) -> list[TokenBudgetBatchSampler]:
    return [
        TokenBudgetBatchSampler(data, data // 2, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def epoch_of(sampler: TokenBudgetBatchSampler, epoch: int) -> list[PlannedBatch]:
    sampler.set_epoch(epoch)
    return list(sampler)


CASES = [
    (count, world_size, accumulate, options)
    for count in (7, 100, 1003)
    for world_size in (1, 2, 3)
    for accumulate in (1, 4)
    for options in ({"token_budget": 1024}, {"batch_size": 8}, {"batch_size": 1}, {"token_budget": 10})
]


@pytest.mark.parametrize(("count", "world_size", "accumulate", "options"), CASES)
def test_training_shares_every_example_once_and_counts_each_step(
    count: int, world_size: int, accumulate: int, options: dict[str, int]
) -> None:
    data = lengths(count)
    ranks = samplers(data, world_size, accumulate=accumulate, **options)
    lefts = []
    for epoch in range(3):
        plans = [epoch_of(sampler, epoch) for sampler in ranks]
        assert [len(plan) for plan in plans] == [len(sampler) for sampler in ranks] == [len(ranks[0])] * world_size
        indices = np.concatenate([batch.indices for plan in plans for batch in plan])
        assert len(np.unique(indices)) == len(indices)
        # Only batches of one example that ranks cannot share evenly leave some out, and other ones each time.
        left = set(range(count)) - set(indices.tolist())
        lefts.append(left)
        singles = all(len(batch.indices) == 1 for plan in plans for batch in plan)
        assert not left or (singles and len(left) < world_size)
        for start in range(0, len(ranks[0]), accumulate):
            step = [batch for plan in plans for batch in plan[start : start + accumulate]]
            expected = sum(int((data[batch.indices] // 2).sum()) for batch in step)
            assert {batch.num_tokens for batch in step} == {float(expected)}
        for batch in (batch for plan in plans for batch in plan):
            rows = len(batch.indices)
            if "token_budget" in options:
                assert rows == 1 or rows * data[batch.indices].max() <= options["token_budget"]
            else:
                assert rows <= options["batch_size"]
    if count > 50 and lefts[0]:
        assert lefts[0] != lefts[1]


@pytest.mark.parametrize(("count", "world_size"), [(1, 3), (7, 4), (100, 3), (101, 2)])
@pytest.mark.parametrize("options", [{"token_budget": 700}, {"batch_size": 1}, {"batch_size": 16}])
def test_evaluation_leaves_nothing_out(count: int, world_size: int, options: dict[str, int]) -> None:
    data = lengths(count)
    plans = [list(sampler) for sampler in samplers(data, world_size, shuffle=False, **options)]
    assert len({len(plan) for plan in plans}) == 1
    counted = [batch for plan in plans for batch in plan if not batch.blank]
    assert sorted(np.concatenate([batch.indices for batch in counted]).tolist()) == list(range(count))
    assert sum(batch.blank for plan in plans for batch in plan) < world_size
    assert all(len(batch.indices) >= 1 for plan in plans for batch in plan)
    first = plans[0][0].indices
    assert data[first].max() == data.max()


def test_order_is_a_function_of_seed_and_epoch() -> None:
    data = lengths(500)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.indices.tolist() for batch in epoch_of(samplers(data, seed=seed, batch_size=8)[0], epoch)]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


def test_partners_and_lengths_change_from_batch_to_batch() -> None:
    sampler = samplers(lengths(2000), token_budget=2048)[0]
    plans = [epoch_of(sampler, epoch) for epoch in (0, 1)]
    together = [{frozenset(batch.indices.tolist()) for batch in plan} for plan in plans]
    assert len(together[0] & together[1]) < 0.05 * len(together[0])
    mean = np.array([sampler.lengths[batch.indices].mean() for batch in plans[0]])
    assert abs(np.corrcoef(mean[:-1], mean[1:])[0, 1]) < 0.2


def test_padding_stays_small_and_infinite_ratio_mixes_all_lengths() -> None:
    data = lengths(20_000)
    assert samplers(data, token_budget=16384)[0].padding_share < 0.09
    assert samplers(data, token_budget=16384, length_ratio=float("inf"))[0].padding_share > 0.5
    assert samplers(data, world_size=8, accumulate=4, token_budget=16384)[0].padding_share < 0.09


def test_a_run_goes_on_where_it_stopped() -> None:
    data = lengths(300)
    whole = [batch.indices.tolist() for batch in epoch_of(samplers(data, batch_size=4, seed=3)[0], 5)]
    first = samplers(data, batch_size=4, seed=3)[0]
    first.set_epoch(5)
    iterator = iter(first)
    begun = [next(iterator).indices.tolist() for _ in range(11)]
    second = samplers(data, batch_size=4, seed=3)[0]
    second.load_state_dict(first.state_dict())
    assert begun + [batch.indices.tolist() for batch in second] == whole
    other = samplers(data, batch_size=4, seed=4)[0]
    with pytest.raises(InputError, match=r"middle of epoch 5.*seed 3 then, 4 now"):
        other.load_state_dict(first.state_dict())
    # Between two epochs nothing is left that could go on wrongly.
    list(second)
    other.load_state_dict(second.state_dict())
    assert (other.epoch, other.position) == (5, len(other))


def test_a_million_examples_are_planned_in_seconds_and_near_linearly() -> None:
    def seconds(count: int) -> float:
        data = lengths(count)
        start = time.process_time()
        sampler = samplers(data, token_budget=16384)[0]
        assert sum(len(batch.indices) for batch in sampler) == count
        return time.process_time() - start

    seconds(1000)
    # The least of some, of both: what else the machine does makes a single one longer.
    small, large = (min(seconds(count) for _ in range(3)) for count in (50_000, 1_000_000))
    assert large < 10
    assert large / small < 20 * 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of"),
        ({"token_budget": 10, "batch_size": 2}, "exactly one of"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"batch_size": 2, "accumulate": 0}, "`accumulate`"),
        ({"batch_size": 2, "length_ratio": 0.5}, "`length_ratio`"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        samplers(lengths(10), **options)


def test_fewer_examples_than_ranks_are_refused_in_training() -> None:
    with pytest.raises(InputError, match="2 examples cannot be shared among 3 processes"):
        samplers(lengths(2), world_size=3, batch_size=1)
