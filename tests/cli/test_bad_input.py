"""Wrong input ends in one clear message on standard error and exit code 2, and leaves nothing half-written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from dpr_lightning.cli.main import main
from dpr_lightning.policies import character_tokenizer, create_toy_policy
from tests.cli.conftest import Workspace, write_rows

GOOD = {"prompt": "1 + 1 =", "completion": "Answer: 2"}
LONG = {"prompt": "1" * 40, "completion": "2"}

BAD_DATA: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "malformed JSON": ([GOOD, '{"prompt": "1", '], {}, ["data.jsonl:2", "JSON"]),
    "not an object": ([GOOD, "[1, 2]"], {}, ["data.jsonl:2"]),
    "unknown role": (
        [{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}],
        {},
        ["data.jsonl:1", "usr"],
    ),
    "empty completion": ([GOOD, {"prompt": "1", "completion": ""}], {}, ["data.jsonl:2", "completion"]),
    "wrong key names": ([{"question": "1", "response": "2"}], {}, ["data.jsonl:1", "question", "columns"]),
    "completion all truncated": (
        [GOOD, LONG],
        {"max_length": 20, "over_length": "truncate"},
        ["data.jsonl:2", "max_length"],
    ),
    "over-length row": ([GOOD, LONG], {"max_length": 20}, ["data.jsonl:2", "max_length"]),
    "empty file": ([], {}, ["data.jsonl", "empty"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_demonstrations(
    case: str, tmp_path: Path, sft_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, options, expected = BAD_DATA[case]
    config = sft_config(write_rows(tmp_path / "data.jsonl", rows), **options)
    before = _files(tmp_path)
    _refused(["fit", "--config", config], expected, capsys)
    assert {path for path in _files(tmp_path) - before if path.name != "config.yaml"} == set()


def test_missing_file(tmp_path: Path, sft_config: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "train.jsonl", [GOOD])
    config = sft_config(str(tmp_path / "trian.jsonl"))
    _refused(["fit", "--config", config], ["trian.jsonl", "train.jsonl"], capsys)


def test_folder_without_a_tokenizer(
    tmp_path: Path, sft_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create_toy_policy(tmp_path / "policy", ["ab 1+=Answer:2"], hidden_size=16, layers=1, heads=2)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    config = sft_config(write_rows(tmp_path / "data.jsonl", [GOOD]), source=str(folder))
    _refused(["fit", "--config", config], [str(folder), "tokenizer"], capsys)


def test_folder_without_weights(
    tmp_path: Path, sft_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "policy"
    character_tokenizer(["1 + =Answer:2"]).save_pretrained(folder)
    config = sft_config(write_rows(tmp_path / "data.jsonl", [GOOD]), source=str(folder))
    _refused(["fit", "--config", config], [str(folder)], capsys)


def test_tokenizers_that_differ(
    tmp_path: Path, dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = create_toy_policy(tmp_path / "other", ["zyx 0123456789+=Answer:"], hidden_size=32, layers=1, heads=2)
    assert Tokenizer.from_file(str(other / "tokenizer.json")).get_vocab_size() > 5
    _refused(["fit", "--config", dpr_config(references=[str(other)])], ["tokenizer", "differ", "token"], capsys)


def test_reference_that_is_the_policy(
    workspace: Workspace, dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(["fit", "--config", dpr_config(references=[workspace.sft])], ["reference", "earlier"], capsys)


def test_policy_that_is_not_the_sft_policy(
    workspace: Workspace, dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = dpr_config(policy=workspace.reference)
    _refused(["fit", "--config", config], ["does not start as π_SFT", "check_start"], capsys)


def test_sampling_that_is_off_policy(dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    config = dpr_config(sampling={"max_new_tokens": 6, "temperature": 0.3})
    _refused(["fit", "--config", config], ["sampler disagree", "temperature"], capsys)


def test_overlap_of_prompts(
    workspace: Workspace, dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(["fit", "--config", dpr_config(evaluation=workspace.prompts)], ["share", "allow_overlap"], capsys)


def test_too_few_prompts(dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    _refused(["fit", "--config", dpr_config(prompts_per_rollout=64)], ["16 prompts", "prompts_per_rollout"], capsys)


def test_unknown_reward_form(dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    _refused(["fit", "--config", dpr_config(reward={"form": "log_ration"})], ["log_ration"], capsys)


def test_misspelt_option(dpr_config: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    _refused(["fit", "--config", dpr_config(promts_per_rollout=4)], ["promts_per_rollout"], capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quickstrat"], ["quickstrat", "quickstart"]),
        (["report", "--run", "nowhere"], ["nowhere"]),
        (["generate", "--policy", "nowhere", "--prompts", "x.jsonl"], ["nowhere"]),
    ],
)
def test_commands(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _refused(arguments, expected, capsys)


def test_a_process_says_it_the_same_way(tmp_path: Path, sft_config: Callable[..., str]) -> None:
    config = sft_config(write_rows(tmp_path / "data.jsonl", [GOOD, "nonsense"]))
    command = [sys.executable, "-m", "dpr_lightning.cli.main", "fit", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "data.jsonl:2" in done.stderr.strip().splitlines()[-1] + done.stderr.strip().splitlines()[-2]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    _refused(["quickstart", "--output", str(tmp_path)], ["other files"], capsys)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def _refused(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, what was found in the message, one screen, no traceback."""
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    message = capsys.readouterr().err
    # Lightning's log handler writes to the stream of the first test; what it complains about comes before.
    said = message[message.rfind("\ndpr ") + 1 :]
    assert code == 2, message
    for part in expected:
        assert part in said, f"{part!r} is not in: {said}"
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 25


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
