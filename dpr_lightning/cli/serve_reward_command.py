"""``dpr serve-reward``: the dense reward over HTTP, for trainers such as OpenRLHF."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from dpr_lightning.data import TextReward
from dpr_lightning.integrations.response_rewards import Reduction
from dpr_lightning.integrations.reward_requests import RewardRequests
from dpr_lightning.integrations.reward_server import RewardServer
from dpr_lightning.integrations.scoring_queue import ScoringQueue
from dpr_lightning.paths import ReadPath
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import RewardSpec

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve_reward(
    sft: ReadPath,
    references: list[ReadPath],
    reward: RewardSpec | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    reduction: Reduction = "mean",
    max_batch: int = 64,
    max_wait_ms: float = 10.0,
    max_waiting: int = 4096,
    max_megabytes: int = 16,
    dtype: Dtype = "float32",
    token_budget: int | None = None,
) -> None:
    """Serve the reward of responses over HTTP, until Ctrl-C or SIGTERM.

    POST /get_reward is the protocol of OpenRLHF's ``remote_rm_url``; POST /score takes prompts and completions and
    returns the reward of each token; GET /health says that the server is up (docs/from_trl.md).

    Args:
        sft: folder of π_SFT.
        references: folders of earlier checkpoints of the same run.
        reward: form of the reward; None: the recommended one.
        host: address to listen on. Anybody who reaches it can use the models: there is no password.
        port: to listen on; 0: a free one, which is printed.
        reduction: of the rewards of a response's tokens to one number: ``mean``, or ``sum``, which has a length bias.
        max_batch: responses scored at once.
        max_wait_ms: milliseconds that a request waits for further ones to be scored with.
        max_waiting: responses that may wait; above it requests get status 503, with Retry-After.
        max_megabytes: of a request.
        dtype: of the models' parameters.
        token_budget: tokens of a forward pass; None: as many as have a GiB of logits.
    """
    dense = TextReward.from_folders(sft, references, reward, dtype=dtype)
    score = partial(dense.score_rows, token_budget=token_budget)
    queue = ScoringQueue(score, max_batch=max_batch, max_wait_s=max_wait_ms / 1000, max_waiting=max_waiting)
    requests = RewardRequests(dense, reduction)
    server = RewardServer(requests, queue, host=host, port=port, max_bytes=max_megabytes << 20)
    if host not in LOOPBACK:
        log.warning("Everybody who reaches %s can use the models: the server asks for no password.", server.url)
    with stop_signal() as stopped:
        server.start()
        console.print(f"Serving on {server.url}: POST /get_reward, POST /score, GET /health. Ctrl-C stops.")
        stopped.wait()
        console.print("Stopping: the requests that wait are answered.")
        server.close()


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, instead of what they do, until the context ends."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
