"""Requests are scored together, within bounds, and each gets its rewards or its error."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dpr_lightning.data.text_reward import TokenRow
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.scoring_queue import QueueClosed, QueueFull, Rewards, ScoringQueue


def row(token: int) -> TokenRow:
    return TokenRow([1, token], [False, True])


class Scores:
    """Gives every row its token as its reward; waits where it is told to, and refuses token 99."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.may_score = threading.Event()
        self.may_score.set()
        self.scoring = threading.Event()

    def __call__(self, rows: Sequence[TokenRow]) -> Rewards:
        self.batches.append(len(rows))
        self.scoring.set()
        assert self.may_score.wait(10)
        if any(99 in row.tokens for row in rows):
            raise InputError("99 is refused")
        return [[float(row.tokens[1])] for row in rows]


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[ScoringQueue, Scores]]]:
    queues: list[tuple[ScoringQueue, Scores]] = []

    def start(**options: Any) -> tuple[ScoringQueue, Scores]:
        scores = Scores()
        queue = ScoringQueue(scores, **({"max_batch": 4, "max_wait_s": 0.0, "max_waiting": 8} | options))
        queue.start()
        queues.append((queue, scores))
        return queue, scores

    yield start
    for queue, scores in queues:
        scores.may_score.set()
        queue.close()


def block(queue: ScoringQueue, scores: Scores) -> Any:
    """Have the queue score a row until it may go on."""
    scores.may_score.clear()
    first = queue.submit([row(1)])
    assert scores.scoring.wait(10)
    return first


def test_requests_that_wait_are_scored_together(make: Any) -> None:
    queue, scores = make()
    first = block(queue, scores)
    rest = [queue.submit([row(n), row(n + 10)]) for n in (2, 3, 4)]
    scores.may_score.set()
    assert first.result(10) == [[1.0]]
    assert [result.result(10) for result in rest] == [[[float(n)], [float(n + 10)]] for n in (2, 3, 4)]
    assert scores.batches == [1, 4, 2]
    assert queue.waiting == 0
    assert queue.scored == 7


def test_a_request_waits_for_more(make: Any) -> None:
    queue, scores = make(max_wait_s=30.0, max_batch=2)
    results = [queue.submit([row(n)]) for n in (1, 2)]
    assert [result.result(10) for result in results] == [[[1.0]], [[2.0]]]
    assert scores.batches == [2]


def test_a_full_queue_refuses_and_goes_on(make: Any) -> None:
    queue, scores = make(max_waiting=3)
    first = block(queue, scores)
    second = queue.submit([row(2), row(3)])
    with pytest.raises(QueueFull):
        queue.submit([row(4), row(5)])
    scores.may_score.set()
    assert first.result(10) == [[1.0]]
    assert second.result(10) == [[2.0], [3.0]]
    assert queue.submit([row(4), row(5)]).result(10) == [[4.0], [5.0]]


def test_an_error_is_that_of_its_request_alone(make: Any) -> None:
    queue, scores = make()
    block(queue, scores)
    good, bad = queue.submit([row(2)]), queue.submit([row(99)])
    scores.may_score.set()
    assert good.result(10) == [[2.0]]
    with pytest.raises(InputError, match="99"):
        bad.result(10)
    assert queue.submit([row(5)]).result(10) == [[5.0]]


def test_a_request_larger_than_a_batch_is_scored_whole(make: Any) -> None:
    queue, _ = make(max_batch=2)
    assert queue.submit([row(n) for n in range(5)]).result(10) == [[float(n)] for n in range(5)]


def test_closing_scores_what_waits_and_takes_no_more(make: Any) -> None:
    queue, _ = make(max_wait_s=30.0)
    first = queue.submit([row(1)])
    queue.close()
    assert first.result(0) == [[1.0]]
    with pytest.raises(QueueClosed):
        queue.submit([row(2)])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="found 0, 8 and 10"):
        ScoringQueue(Scores(), max_batch=0, max_wait_s=0.01, max_waiting=8)
