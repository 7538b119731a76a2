"""The reward server, called over HTTP as trainers call it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning import DenseReward
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.reward_requests import RewardRequests
from dpr_lightning.integrations.reward_server import RewardServer
from dpr_lightning.integrations.scoring_queue import ScoringQueue
from dpr_lightning.run_manifest import record_stage

PROMPTS, ANSWERS = ["1 + 1 =", "20 + 3 ="], ["Answer: 2", "23"]


@pytest.fixture
def serve(reward: DenseReward) -> Iterator[Callable[..., RewardServer]]:
    servers: list[RewardServer] = []

    def start(score: Any = reward.score_rows, max_bytes: int = 1 << 20, reduction: Any = "mean", **queue: Any) -> Any:
        options = {"max_batch": 8, "max_wait_s": 0.005, "max_waiting": 16} | queue
        requests = RewardRequests(reward, reduction)
        server = RewardServer(requests, ScoringQueue(score, **options), host="127.0.0.1", port=0, max_bytes=max_bytes)
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
    server = serve(max_waiting=64)
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


def test_a_full_queue_is_status_503_with_retry_after(serve: Any, reward: DenseReward) -> None:
    scoring, may_score = threading.Event(), threading.Event()

    def slow(rows: Any) -> Any:
        scoring.set()
        assert may_score.wait(30)
        return reward.score_rows(rows)

    server = serve(slow, max_waiting=1, max_wait_s=0.0)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_stopped(folders: tuple[str, str], number: int, tmp_path: Path) -> None:
    named = ["--sft", folders[0], "--references", f"[{folders[1]}]"]
    if number == signal.SIGINT:  # the same, from a run
        for folder, name in zip(folders, ("final", "step_0000010"), strict=True):
            shutil.copytree(folder, tmp_path / "sft" / "policies" / name)
        (tmp_path / "sft" / "policies" / "references.json").write_text('{"step_0000010": 0.25, "final": 1.0}')
        record_stage(tmp_path / "run.json", "sft", {"policies": str(tmp_path / "sft" / "policies")})
        named = ["--run", str(tmp_path)]
    command = [sys.executable, "-u", "-m", "dpr_lightning.cli.main", "serve-reward", *named, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2].rstrip(":")
        status, content, _ = call(f"{url}/score", {"prompts": PROMPTS, "completions": ANSWERS})
        assert status == 200
        assert len(content["rewards"]) == 2
        process.send_signal(number)
        assert "Stopping" in process.stdout.read()
    assert process.returncode == 0
