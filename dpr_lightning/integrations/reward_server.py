"""An HTTP server for rewards of text, for trainers that ask a remote reward model."""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from dpr_lightning.data.text_reward import TokenRow
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.reward_requests import RewardRequests
from dpr_lightning.integrations.scoring_queue import QueueClosed, QueueFull, Rewards, ScoringQueue

log = logging.getLogger(__name__)
RETRY_AFTER_S = 1
"""Seconds after which a client that was refused may try again."""
READ_TIMEOUT_S = 30
"""Seconds without a byte after which a request is given up."""
STOP_WITHIN_S = 0.1
"""Seconds between looks at whether the server is to stop."""
MAX_REQUESTS = 256
"""Requests that are read and answered at once; each takes a thread and its body's memory."""
ANSWER_TIMEOUT_S = 600
"""Seconds after which a request that is not scored is given up."""
FULL = "Too many responses wait to be scored. Try again later."
SKIPPED_AT_ONCE = 1 << 16
"""Bytes of a body that is too large, read at once."""


class ScoredRoute(NamedTuple):
    """How requests to a path are served: from content to rows, and from their rewards to content."""

    rows: Callable[[Mapping[str, Any]], list[TokenRow]]
    response: Callable[[Sequence[TokenRow], Rewards], dict[str, Any]]


class Refused(Exception):
    """Raised for a request that is answered with an error: its status, and a sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class RewardServer:
    """Serves rewards until it is closed. The queue is closed with it.

    ``GET /health``; ``POST /get_reward``, the protocol of OpenRLHF's ``remote_rm_url``; ``POST /score``, with the
    reward of each token. Errors are JSON too: ``{"error": "a sentence"}``.

    Args:
        requests: reads and writes the content of requests.
        queue: scores the rows.
        host: address to listen on.
        port: to listen on; 0: a free one.
        max_bytes: of the body of a request.
        max_requests: that are read and answered at once; above it they are refused as from a full queue.

    Raises:
        InputError: the address cannot be listened on.
    """

    def __init__(
        self,
        requests: RewardRequests,
        queue: ScoringQueue,
        *,
        host: str,
        port: int,
        max_bytes: int,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self.queue, self.max_bytes = queue, max_bytes
        self.free = threading.Semaphore(max_requests)
        openrlhf = ScoredRoute(requests.openrlhf_rows, requests.openrlhf_response)
        self.routes = {"/get_reward": openrlhf, "/score": ScoredRoute(requests.text_rows, requests.text_response)}
        try:
            self._server = _Server((host, port), partial(_Handler, self))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"Cannot listen on port {port} of {host} ({str(error).rstrip('.')}). Choose another one by `--port`, "
                "or 0 for a free one."
            ) from error
        serve = partial(self._server.serve_forever, poll_interval=STOP_WITHIN_S)
        self._thread = threading.Thread(target=serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Address of the server."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Begin to serve."""
        self.queue.start()
        self._thread.start()

    def close(self) -> None:
        """Take no more requests, answer those that came, and stop."""
        self._server.shutdown()
        self._thread.join()
        self.queue.close()
        self._server.server_close()

    def health(self) -> dict[str, Any]:
        """The content of ``GET /health``."""
        return {"status": "ok", "waiting": self.queue.waiting, "scored": self.queue.scored}

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """The content of the response to a POST.

        Raises:
            Refused: it has none.
        """
        if path not in self.routes:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no {path}. POST to {', '.join(self.routes)}.")
        route = self.routes[path]
        try:
            content = json.loads(body)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"The body is no JSON: {error}.") from error
        if not isinstance(content, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "The body is a JSON object.")
        try:
            rows = route.rows(content)
            if len(rows) > self.queue.max_waiting:
                raise Refused(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The request has {len(rows):,} responses, and the queue takes {self.queue.max_waiting:,} "
                    "(`--max_waiting`). Send fewer at once.",
                )
            rewards = self.queue.submit(rows).result(ANSWER_TIMEOUT_S)
        except InputError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except QueueFull as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, FULL) from error
        except QueueClosed as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.") from error
        except NotInTime as error:
            message = f"The responses were not scored within {ANSWER_TIMEOUT_S} s."
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, message) from error
        return route.response(rows, rewards)


class _Server(ThreadingHTTPServer):
    """A thread for each request; closing waits for them."""

    daemon_threads = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called for an exception of a request's thread, such as a client that left before its answer."""
        log.debug("A request of %s failed.", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, and writes what the server answers."""

    timeout = READ_TIMEOUT_S

    def __init__(self, server: RewardServer, *arguments: Any) -> None:
        self._rewards = server
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Called for GET: the health."""
        if self.path == "/health":
            self._send(HTTPStatus.OK, self._rewards.health())
        elif self.path in self._rewards.routes:
            self._refuse(Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.path} takes POST."))
        else:
            self._refuse(Refused(HTTPStatus.NOT_FOUND, f"There is no {self.path}. GET takes /health."))

    def do_POST(self) -> None:
        """Called for POST: the rewards."""
        try:
            with self._one_of_max_requests():
                content = self._rewards.answer(self.path, self._body())
        except Refused as refused:
            self._refuse(refused)
        except Exception:
            log.exception("A request to %s failed.", self.path)
            message = "The server failed; its log has the traceback."
            self._refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, message))
        else:
            self._send(HTTPStatus.OK, content)

    @contextmanager
    def _one_of_max_requests(self) -> Iterator[None]:
        if not self._rewards.free.acquire(blocking=False):
            self._skip(self._length())
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, FULL)
        try:
            yield
        finally:
            self._rewards.free.release()

    def _length(self) -> int:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "The request has no Content-Length.")
        return int(length)

    def _body(self) -> bytes:
        length, limit = self._length(), self._rewards.max_bytes
        if length > limit:
            self._skip(length)
            message = f"The body has {length:,} bytes, and at most {limit:,} are read (`--max_megabytes`)."
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        try:
            return self.rfile.read(length)
        except TimeoutError as error:
            message = f"The body has not come within {READ_TIMEOUT_S} s."
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, message) from error

    def _skip(self, length: int) -> None:
        """Read a body without keeping it: many clients read no response before they have sent theirs."""
        with suppress(TimeoutError):
            while length > 0 and (block := self.rfile.read(min(length, SKIPPED_AT_ONCE))):
                length -= len(block)

    def _refuse(self, refused: Refused) -> None:
        self._send(refused.status, {"error": str(refused)})

    def _send(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Called for every request: no line for each, which would be thousands."""
        log.debug(format, *arguments)
