"""Requests of several clients, scored together, with a bound on how many wait."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from dpr_lightning.data.text_reward import TokenRow
from dpr_lightning.errors import InputError

log = logging.getLogger(__name__)


Rewards = list[list[float]]
"""Nats of each token that the policy wrote, of each row."""


class QueueFull(Exception):
    """Raised where as many rows wait as may."""


class QueueClosed(Exception):
    """Raised once the queue takes no more rows."""


class _Job(NamedTuple):
    rows: Sequence[TokenRow]
    result: "Future[Rewards]"


class ScoringQueue:
    """A queue of rows that one thread scores, as many at once as wait.

    Args:
        score: called with the rows of one or more requests, in the queue's thread only.
        max_batch: rows that are scored at once, unless a single request has more.
        max_wait_s: seconds that a request waits for further ones to be scored with.
        max_waiting: rows that may wait; above it requests are refused.
    """

    def __init__(
        self, score: Callable[[Sequence[TokenRow]], Rewards], *, max_batch: int, max_wait_s: float, max_waiting: int
    ) -> None:
        if max_batch < 1 or max_waiting < 1 or max_wait_s < 0:
            raise InputError(
                "`max_batch` and `max_waiting` are at least 1, and `max_wait_ms` is not negative; found "
                f"{max_batch}, {max_waiting} and {1000 * max_wait_s:g}."
            )
        self._score = score
        self.max_batch, self.max_wait_s, self.max_waiting = max_batch, max_wait_s, max_waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.waiting = 0
        self.scored = 0
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def start(self) -> None:
        """Begin to score."""
        self._thread.start()

    def submit(self, rows: Sequence[TokenRow]) -> "Future[Rewards]":
        """Add the rows of a request.

        Returns:
            their rewards, once they are scored; or the error of scoring them.

        Raises:
            QueueFull: there is no room for them now.
            QueueClosed: the queue is closed.
        """
        job = _Job(rows, Future())
        with self._changed:
            if self._closed:
                raise QueueClosed
            if self.waiting + len(rows) > self.max_waiting:
                raise QueueFull
            self._jobs.append(job)
            self.waiting += len(rows)
            self._changed.notify_all()
        return job.result

    def close(self) -> None:
        """Take no more rows, score those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while jobs := self._next_jobs():
            self._score_jobs(jobs)

    def _next_jobs(self) -> list[_Job]:
        """The jobs to score together; none where the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            deadline = time.monotonic() + self.max_wait_s
            while not self._closed and self.waiting < self.max_batch:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            jobs: list[_Job] = []
            count = 0
            while self._jobs and (not jobs or count + len(self._jobs[0].rows) <= self.max_batch):
                jobs.append(self._jobs.popleft())
                count += len(jobs[-1].rows)
            self.waiting -= count
            return jobs

    def _score_jobs(self, jobs: Sequence[_Job]) -> None:
        rows = [row for job in jobs for row in job.rows]
        try:
            rewards = self._score(rows)
        except Exception as error:
            if len(jobs) > 1:
                # One request must not fail for what another one sent.
                for job in jobs:
                    self._score_jobs([job])
                return
            if not isinstance(error, InputError):
                log.exception("Scoring %d rows failed.", len(rows))
            jobs[0].result.set_exception(error)
            return
        self.scored += len(rows)
        for job in jobs:
            part, rewards = rewards[: len(job.rows)], rewards[len(job.rows) :]
            job.result.set_result(part)
