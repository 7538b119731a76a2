"""The reward server, called over HTTP as trainers call it."""

import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning import DenseReward
from dpr_lightning.cli.main import main
from dpr_lightning.cli.serve_reward_command import stop_signal
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.reward_requests import RewardRequests
from dpr_lightning.integrations.reward_server import RewardServer
from dpr_lightning.integrations.scoring_queue import ScoringQueue
from dpr_lightning.run_manifest import record_stage

PROMPTS, ANSWERS = ["1 + 1 =", "20 + 3 ="], ["Answer: 2", "23"]


@pytest.fixture
def serve(reward: DenseReward) -> Iterator[Callable[..., RewardServer]]:
    servers: list[RewardServer] = []

    def start(
        score: Any = reward.score_rows, reduction: Any = "mean", max_requests: int = 8, **queue: Any
    ) -> RewardServer:
        options = {"max_batch": 8, "max_wait_s": 0.005, "max_waiting": 16} | queue
        requests = RewardRequests(reward, reduction)
        server = RewardServer(
            requests,
            ScoringQueue(score, **options),
            host="127.0.0.1",
            port=0,
            max_bytes=1 << 20,
            max_requests=max_requests,
        )
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def call(url: str, content: Any = None) -> tuple[int, Any, dict[str, str]]:
    """Status, content and headers of a GET, or of a POST of ``content``."""
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
            return response.status, json.load(response), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def test_scores_of_texts_are_those_of_the_reward(serve: Any, reward: DenseReward) -> None:
    server = serve()
    status, content, _ = call(f"{server.url}/score", {"prompts": PROMPTS, "completions": ANSWERS})
    assert status == 200
    expected = reward.score_texts(PROMPTS, ANSWERS)
    for tokens, ours, total in zip(content["tokens"], expected, content["rewards"], strict=True):
        assert [token["text"] for token in tokens] == [text for text, _ in ours]
        assert [token["reward"] for token in tokens] == pytest.approx([value for _, value in ours], abs=1e-5)
        assert total == pytest.approx(sum(value for _, value in ours) / len(ours), abs=1e-5)
    cut = call(f"{server.url}/score", {"prompts": PROMPTS, "completions": ANSWERS, "ended": [True, False]})[1]
    assert [len(tokens) for tokens in cut["tokens"]] == [len(expected[0]), len(expected[1]) - 1]
    assert call(f"{server.url}/health")[:2] == (200, {"status": "ok", "waiting": 0, "scored": 4})


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_openrlhf_gets_one_reward_a_query(serve: Any, reward: DenseReward, reduction: str) -> None:
    server = serve(reduction=reduction)
    end, pad = reward.tokenizer.eos_token, reward.tokenizer.pad_token
    # Padded before the prompt and after the end, as a padded batch is decoded; the last one was cut.
    queries = [f"{pad}{pad}{PROMPTS[0]}{ANSWERS[0]}{end}{pad}", PROMPTS[1] + ANSWERS[1]]
    request = {"query": queries, "prompts": PROMPTS, "labels": ["2", "23"]}
    status, content, _ = call(f"{server.url}/get_reward", request)
    assert status == 200
    expected = [[value for _, value in tokens] for tokens in reward.score_texts(PROMPTS, ANSWERS, ended=[True, False])]
    assert content["extra_logs"]["scored_tokens"] == [len(values) for values in expected]
    assert content["extra_logs"]["dense_reward_sum"] == pytest.approx([sum(values) for values in expected], abs=1e-5)
    divisors = [len(values) if reduction == "mean" else 1 for values in expected]
    totals = [sum(values) / divisor for values, divisor in zip(expected, divisors, strict=True)]
    assert content["rewards"] == content["scores"] == pytest.approx(totals, abs=1e-5)


def test_an_answer_without_tokens_has_no_reward(serve: Any) -> None:
    content = call(f"{serve().url}/get_reward", {"query": PROMPTS[:1], "prompts": PROMPTS[:1]})[1]
    assert content["rewards"] == [0.0]


def test_many_clients_at_once_get_their_answers(serve: Any, reward: DenseReward) -> None:
    server = serve(max_waiting=64, max_requests=64)
    answers = [str(number) * (1 + number % 3) for number in range(24)]
    results: dict[int, Any] = {}

    def ask(number: int) -> None:
        request = {"prompts": [PROMPTS[0]], "completions": [answers[number]]}
        results[number] = call(f"{server.url}/score", request)[1]["rewards"][0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = reward.score_texts([PROMPTS[0]] * len(answers), answers)
    means = [sum(value for _, value in tokens) / len(tokens) for tokens in expected]
    assert [results[number] for number in range(len(answers))] == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize("limits", [{"max_waiting": 1}, {"max_requests": 2}], ids=["responses", "requests"])
def test_a_full_queue_is_status_503_with_retry_after(limits: dict[str, int], serve: Any, reward: DenseReward) -> None:
    scoring, may_score = threading.Event(), threading.Event()

    def slow(rows: Any) -> Any:
        scoring.set()
        assert may_score.wait(30)
        return reward.score_rows(rows)

    server = serve(slow, max_wait_s=0.0, **limits)
    request = {"prompts": PROMPTS[:1], "completions": ANSWERS[:1]}
    results: list[int] = []
    clients = [
        threading.Thread(target=lambda: results.append(call(f"{server.url}/score", request)[0])) for _ in range(2)
    ]
    clients[0].start()
    assert scoring.wait(10)
    clients[1].start()
    while call(f"{server.url}/health")[1]["waiting"] == 0:
        pass
    status, content, headers = call(f"{server.url}/score", request)
    assert status == 503
    assert "Try again later" in content["error"]
    assert headers["Retry-After"] == "1"
    may_score.set()
    for client in clients:
        client.join()
    assert results == [200, 200]
    assert call(f"{server.url}/score", request)[0] == 200


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("/score", b"{", 400, "The body is no JSON"),
        ("/score", [1], 400, "The body is a JSON object"),
        ("/score", {"prompts": PROMPTS}, 400, "The request has no 'completions'; it has prompts"),
        ("/score", {"prompts": "1", "completions": ["2"]}, 400, "'prompts' is a list, one entry a response; found str"),
        ("/score", {"prompts": PROMPTS, "completions": ["2"]}, 400, "'prompts' has 2 entries and 'completions' has 1"),
        ("/score", {"prompts": ["1"], "completions": ["2"], "ended": [1]}, 400, "`ended` is a list of true and false"),
        ("/score", {"prompts": ["1", " "], "completions": ["2", "2"]}, 400, "pair:2 has an empty prompt"),
        ("/score", {"prompts": [[{"role": "u"}]], "completions": ["2"]}, 400, "pair:1"),
        ("/score", {"prompts": ["1"] * 17, "completions": ["2"] * 17}, 413, "17 responses, and the queue takes 16"),
        ("/score", b" " * (1 << 21), 413, "2,097,152 bytes, and at most 1,048,576 are read"),
        ("/get_reward", {"query": ["1 = 1"]}, 400, "The request has no 'prompts'; it has query"),
        ("/get_reward", {"query": ["1 = 1"], "prompts": ["2"]}, 400, "`query` 1 does not contain `prompts` 1"),
        ("/get_reward", {"query": [1], "prompts": ["2"]}, 400, "Entry 1 of 'query' is no text"),
        ("/rewards", {}, 404, "There is no /rewards. POST to /get_reward, /score"),
        ("/rewards", None, 404, "There is no /rewards. GET takes /health"),
        ("/score", None, 405, "/score takes POST"),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(
    serve: Any, path: str, content: Any, status: int, message: str
) -> None:
    result, answer, _ = call(serve().url + path, content)
    assert result == status
    assert message in answer["error"]


def test_a_fault_of_scoring_is_status_500_and_the_server_goes_on(serve: Any, reward: DenseReward) -> None:
    faults = [RuntimeError("out of order")]

    def score(rows: Any) -> Any:
        if faults:
            raise faults.pop()
        return reward.score_rows(rows)

    server = serve(score)
    request = {"prompts": PROMPTS, "completions": ANSWERS}
    assert call(f"{server.url}/score", request)[0] == 500
    assert call(f"{server.url}/score", request)[0] == 200


def test_a_request_without_a_length_and_one_that_breaks_off_harm_nothing(serve: Any) -> None:
    server = serve()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /score HTTP/1.0\r\n\r\n")
        assert b"411" in connection.recv(1000)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /score HTTP/1.0\r\nContent-Length: 100\r\n\r\n{")
    assert call(f"{server.url}/health")[0] == 200


def test_a_port_in_use_is_refused(serve: Any, reward: DenseReward) -> None:
    server = serve()
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(InputError, match=f"Cannot listen on port {port} of 127.0.0.1.*`--port`"):
        RewardServer(RewardRequests(reward, "mean"), server.queue, host="127.0.0.1", port=port, max_bytes=1)


def test_the_command_serves_a_run_until_it_is_stopped(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = tmp_path / "sft" / "policies"
    for folder, name in zip(folders, ("final", "step_0000010"), strict=True):
        shutil.copytree(folder, policies / name)
    (policies / "references.json").write_text('{"step_0000010": 0.25, "final": 1.0}')
    record_stage(tmp_path / "run.json", "sft", {"policies": str(policies)})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results: list[Any] = []

    def call_and_stop() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not results:
            with suppress(urllib.error.URLError):
                request = {"prompts": PROMPTS, "completions": ANSWERS}
                results.append(call(f"http://127.0.0.1:{port}/score", request)[:2])
        os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=call_and_stop)
    client.start()
    assert main(["serve-reward", "--run", str(tmp_path), "--port", str(port)]) == 0
    client.join()
    assert results[0][0] == 200
    assert len(results[0][1]["rewards"]) == 2
    output = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}" in output
    assert "Stopping" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_means_what_it_did_before_afterwards(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        assert stopped.wait(10)
    assert signal.getsignal(number) is before
