"""The judge against a server of our own: verdicts, order, money, and every way in which a server can fail."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dpr_lightning.cli.main import main
from dpr_lightning.run_manifest import record_stage
from tests.tiny import write_tiny_policy
from tests.training import write_weaker_policy
from tests.workspace import write_rows

pytest.importorskip("openai")
Reply = Callable[[str], Any]
KEY = "the right key"


class Server(ThreadingHTTPServer):
    """An endpoint whose ``reply`` turns a request into a verdict, a status code or any other body."""

    daemon_threads = True
    reply: Reply
    requests: int = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        reply: Any = 401
        if self.headers["Authorization"] == f"Bearer {KEY}":
            reply = self.server.reply(body["messages"][1]["content"])
        if reply is None:
            threading.Event().wait(2.0)
            reply = 500
        status, text = (reply, "{}") if isinstance(reply, int) else (200, reply)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def says(content: str) -> str:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
                       "usage": usage})  # fmt: skip


def prefers_seven(text: str) -> str:
    """The answer with a 7; otherwise the first one."""
    answers = text.partition("# Answer A\n")[2].partition("\n\n# Answer B\n")
    winner = "B" if "7" in answers[2] and "7" not in answers[0] else "A"
    return says(f'Let me see {{well}}.\n{{"reason": "it says so", "winner": "{winner}"}}')


@pytest.fixture
def server() -> Iterator[Server]:
    http_server = Server(("127.0.0.1", 0), Handler)
    http_server.reply = prefers_seven
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    yield http_server
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Callable[..., int]:
    """Runs the command on four prompts: of two the first policy says 7, of one the second, of one neither."""
    first = ["7 it is", "a 7", "six", "five"]
    second = ["six", "eight apples and pears", "the 7", "four"]
    files = []
    for name, texts in (("first", first), ("second", second)):
        rows = [{"prompt": f"p{number}", "completion": text} for number, text in enumerate(texts)]
        files.append(write_rows(tmp_path / f"{name}.jsonl", rows))

    def run(*more: str, key: str = KEY) -> int:
        address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        endpoint = ["--endpoint.model", "m", "--endpoint.base_url", address, "--endpoint.api_key", key]
        options = ["--endpoint.retries", "1", "--endpoint.timeout", "0.5", "--cache", str(tmp_path / "replies.jsonl")]
        return main(["judge", "--first", files[0], "--second", files[1], *endpoint, *options, *more])

    return run


def saved_replies(folder: Path) -> int:
    path = folder / "replies.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_both_orders_are_asked_and_counted(
    ask: Callable[..., int], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "judged.json"
    prices = ["--endpoint.budget", "1", "--endpoint.input_price", "10", "--endpoint.output_price", "100"]
    assert ask("--output", str(output), *prices) == 0
    result = json.loads(output.read_text())
    # Won, won, lost, and one that followed the place.
    assert result["win_rate"]["mean"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert (result["ties"], result["flips"], result["judged"]) == (0.25, 0.25, 4)
    assert result["place_bias"] == pytest.approx((1 + 1 + 1 + 2) / 8)
    assert result["words"] == [(3 + 2 + 1 + 1) / 4, (1 + 4 + 2 + 1) / 4]
    assert result["longer_wins"] == pytest.approx(2 / 3)
    assert (result["requests"], server.requests, saved_replies(tmp_path)) == (8, 8, 8)
    assert result["dollars"] == pytest.approx(8 * (100 * 10 + 10 * 100) / 1e6)
    text = capsys.readouterr().out
    assert "no detectable difference" in text
    # Nothing is asked or paid for twice.
    assert ask("--output", str(output), *prices) == 0
    assert (json.loads(output.read_text())["dollars"], server.requests) == (0.0, 8)


@pytest.mark.parametrize(
    ("failure", "key", "message"),
    [
        (None, "another key", "refuses the key"),
        (429, KEY, "answers 429"),
        (500, KEY, "answers 500"),
        ("slow", KEY, "did not answer within 0.5 s"),
        ("{not json", KEY, "no chat completion"),
        ('{"hello": 1}', KEY, "no chat completion"),
    ],
)
def test_what_was_judged_before_a_failure_is_cached(
    failure: Any, key: str, message: str, ask: Callable[..., int], server: Server, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answered = 0

    def fails_later(text: str) -> Any:
        nonlocal answered
        answered += 1
        if answered <= 3:
            return prefers_seven(text)
        return None if failure == "slow" else failure

    server.reply = fails_later
    assert ask("--endpoint.parallel", "1", key=key) == 2
    error = capsys.readouterr().err
    expected = 3 if failure is not None else 0
    assert message in error
    assert f"{expected} of 8 replies are in" in error
    assert saved_replies(tmp_path) == expected
    before, server.reply = server.requests, prefers_seven
    assert ask() == 0
    assert server.requests - before == 8 - expected


def test_a_passing_fault_is_tried_again(ask: Callable[..., int], server: Server) -> None:
    seen: list[str] = []

    def stumbles(text: str) -> Any:
        seen.append(text)
        return 500 if seen.count(text) == 1 else prefers_seven(text)

    server.reply = stumbles
    assert ask() == 0
    assert server.requests == 16


def test_the_budget_is_not_exceeded(
    ask: Callable[..., int], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A request may cost 300 tokens written at $100 a million, and the one before cost 10.
    prices = ["--endpoint.input_price", "0", "--endpoint.output_price", "100", "--endpoint.parallel", "1"]
    assert ask(*prices, "--endpoint.budget", "0.0325") == 2
    assert "budget of $0.0325 is used up" in capsys.readouterr().err
    assert server.requests == saved_replies(tmp_path) == 3
    assert ask("--endpoint.budget", "1") == 2
    assert "`input_price`" in capsys.readouterr().err


def test_replies_that_say_nothing(
    ask: Callable[..., int], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda text: says("I like both") if "p0" in text else prefers_seven(text)
    output = tmp_path / "judged.json"
    assert ask("--output", str(output)) == 0
    assert json.loads(output.read_text())["unreadable"] == 1
    assert "Not counted: 1 prompt with a reply that could not" in capsys.readouterr().out
    (tmp_path / "replies.jsonl").unlink()
    server.reply = lambda _: says('{"winner": "C"}')
    assert ask() == 2
    assert "0 of 4 prompts have a verdict" in capsys.readouterr().err


def test_answers_in_several_files_are_read_as_rows_are(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (tmp_path / "second.jsonl").read_text().splitlines(keepends=True)
    parts = [tmp_path / "shards" / f"{number}.jsonl" for number in range(2)]
    parts[0].parent.mkdir()
    for part, content in zip(parts, (lines[:1], lines[1:]), strict=True):
        part.write_text("".join(content))
    output = tmp_path / "judged.json"
    for second in (str(tmp_path / "shards" / "*.jsonl"), f"[{parts[0]}, {{path: {parts[1]}}}]"):
        assert ask("--second", second, "--output", str(output)) == 0
        assert json.loads(output.read_text())["judged"] == 4
    parts[1].write_text(json.dumps({"question": "q"}))
    assert ask("--second", str(tmp_path / "shards")) == 2
    assert f"{parts[1]}:1 has the keys 'question'" in capsys.readouterr().err
    assert ask("--output", str(parts[0]), "--second", str(tmp_path / "shards" / "*.jsonl")) == 2
    assert "which `second` reads" in capsys.readouterr().err


def test_a_run_is_judged_by_the_answers_of_its_policies(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sft = write_tiny_policy(tmp_path / "run/sft/policies/final")
    rows = [{"question": f"{number} + 1 =", "solution": str(number + 1)} for number in range(4)]
    entry = {
        "policies": "run/sft/policies", "held_out": write_rows(tmp_path / "run/held_out.jsonl", rows),
        "columns": {"prompt": "question", "completion": "solution"}, "max_new_tokens": 5,
    }  # fmt: skip
    record_stage(Path("run/run.json"), "sft", entry)
    endpoint = ["--endpoint.model", "m", "--endpoint.api_key", KEY]
    command = ["judge", "--run", "run", "--endpoint.base_url", f"http://127.0.0.1:{server.server_address[1]}/v1"]
    command += endpoint
    assert main(command) == 2
    assert "are the same policy, run/sft/policies/final" in capsys.readouterr().err

    write_weaker_policy(sft, tmp_path / "run/rl/policies/final", noise=0.5)
    record_stage(Path("run/run.json"), "rl", {"policies": "run/rl/policies"})
    assert main(command) == 0
    assert "First: run/rl/policies/final. Second: run/sft/policies/final." in capsys.readouterr().out
    assert json.loads(Path("run/judge/judge.json").read_text())["judged"] == 4
    assert server.requests == saved_replies(tmp_path / "run/judge") == 8

    # The same answers as `dpr generate` samples, for which the replies are there already.
    generate = ["generate", "--run", "run", "--policy", str(sft), "--output", "sft.jsonl"]
    assert main(generate) == 0
    for limit, judged in (("4", 4), ("2", 2)):
        assert main([*command, "--second", "sft.jsonl", "--limit", limit]) == 0
        assert json.loads(Path("run/judge/judge.json").read_text())["judged"] == judged
    assert server.requests == 8
    assert main(["judge", "--first", "sft.jsonl", "--sft", str(sft), *endpoint]) == 2
    assert "Name a file of answers as `second`, or a policy as `sft` and `prompts`" in capsys.readouterr().err


def test_half_a_line_in_the_cache_is_no_reply(ask: Callable[..., int], server: Server, tmp_path: Path) -> None:
    assert ask() == 0
    path = tmp_path / "replies.jsonl"
    path.write_text(path.read_text()[:-20])
    assert ask() == 0
    assert server.requests == 9


def test_answers_must_pair_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"prompt": "p", "completion": "a"}])
    other = write_rows(tmp_path / "other.jsonl", [{"instruction": "q", "output": "b"}])
    wrong = write_rows(tmp_path / "wrong.jsonl", [{"question": "q"}])
    twice = write_rows(tmp_path / "twice.jsonl", [{"prompt": "p", "completion": "a"}] * 2)
    endpoint = ["--endpoint.model", "m", "--endpoint.api_key", "k"]
    for second, text in ((other, "answer of one policy alone"), (wrong, "wrong.jsonl:1"), (twice, "again")):
        assert main(["judge", "--first", one, "--second", second, *endpoint]) == 2
        assert text in capsys.readouterr().err
