"""Wrong input ends in one clear message on standard error and exit code 2, and leaves nothing half-written."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch

from dpr_lightning.cli import main as cli
from dpr_lightning.data import PromptSet
from dpr_lightning.data.rows import open_rows
from dpr_lightning.errors import InputError
from dpr_lightning.folders import WRITTEN
from tests.reliability.bad_inputs import BEGIN, CASES, END, row
from tests.reliability.kit import GOOD, Kit, run_case
from tests.strategies.launch import start_ranks
from tests.tiny import tiny_tokenizer
from tests.workspace import Workspace, make_workspace, write_rows, write_sft_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
ALL = {name: case for cases in CASES.values() for name, case in cases.items()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("bad") / "healthy")


@pytest.mark.parametrize("name", ALL)
def test_wrong_input(name: str, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "a GPU that is not there" and torch.accelerator.is_available():
        pytest.skip("there is one")
    monkeypatch.chdir(tmp_path)
    answer = run_case(ALL[name], tmp_path / "case", workspace)
    assert answer.code == 2, answer.message
    for part in ALL[name].says:
        assert part in answer.message
    assert answer.message.startswith("dpr ")
    assert "Traceback" not in answer.message
    assert len(answer.message.splitlines()) <= 5
    # Tokens that were made before are whole and will be used again.
    assert answer.left - {WRITTEN} in (set(), {"manifest.json", "tokens.safetensors"})
    assert not (tmp_path / "pwned").exists()
    # The table of the documentation has this message.
    table_row = next((line for line in _table() if line.startswith(f"| {name} |")), "no row")
    assert _words(table_row) == _words(row(name, answer, tmp_path)), (
        "run: python -m tests.reliability.bad_inputs docs/reliability.md"
    )


def test_the_table_has_no_other_rows() -> None:
    names = {line.split("|")[1].strip() for line in _table() if line.startswith("| ")}
    assert names == set(ALL) | set(CASES)
    assert len(ALL) >= 40


def _table() -> list[str]:
    text = DOCUMENT.read_text()
    return text[text.index(BEGIN) : text.index(END)].splitlines()


def _words(line: str) -> str:
    """Without what a folder's name changes: where the message is cut."""
    return re.sub(r"[^a-z]", "", line.lower())[:160]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a byte order mark", b"\xef\xbb\xbf" + b'{"prompt": "1", "completion": "2"}\n'),
        ("lines that end as on Windows", b'{"prompt": "1", "completion": "2"}\r\n'),
        ("no newline at the end", b'{"prompt": "1", "completion": "2"}'),
        ("a pair of surrogates", b'{"prompt": "1", "completion": "2", "note": "\\ud83d\\ude00"}\n'),
    ],
)
def test_what_is_read_as_it_was_meant(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert [row.values["prompt"] for row in open_rows(path)] == ["1"]


def test_an_id_of_the_user_identifies_nothing(tmp_path: Path) -> None:
    rows = [GOOD | {"id": 7}, GOOD | {"prompt": "2", "id": 7}]
    prompts = PromptSet.load(write_rows(tmp_path / "data.jsonl", rows), tiny_tokenizer())
    assert len(prompts) == 2
    assert [row["id"] for row in prompts.metadata] == [7, 7]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["quickstart", "--output", str(tmp_path)]) == 2
    assert "files of another kind" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_process_says_it_the_same_way(tmp_path: Path, workspace: Workspace) -> None:
    config = Kit(tmp_path, workspace).rows(GOOD, "nonsense")[-1]
    (process,) = start_ranks(["dpr_lightning.cli.main", "fit", "--config", config], 1, tmp_path / "logs")
    assert process.wait(120) == 2
    printed = (tmp_path / "logs" / "rank_0.log").read_text()
    assert "Traceback" not in printed
    assert "data.jsonl:2" in printed.strip().splitlines()[-1]
    with pytest.raises(InputError):
        cli.main(["fit", "--config", config, "--debug"])


def test_our_own_fault_is_said_to_be_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dpr_lightning.cli.main.settle_libraries", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["report"]) == 1
    message = capsys.readouterr().err
    assert "TypeError: 'int' object is not callable" in message
    assert "please send it with your report" in message
    assert "Traceback" not in message
    (saved,) = tmp_path.glob("dpr_traceback_*.txt")
    assert str(saved) in message
    assert "Traceback" in saved.read_text()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/cache.bin"), ("/data/cache.bin", "Free some space")),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), ("/data/x: Permission denied", "right")),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), ("/data/x", "Write somewhere else")),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ("2 GiB", "token_budget", "Halving")),
        (RuntimeError("serialization: No space left on device (os error 28)"), ("No space left", "Free some space")),
    ],
)
def test_what_the_machine_refuses_is_said_plainly(
    error: Exception, says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _break(monkeypatch, error)
    assert cli.main(["report"]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in says), message


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError("Connection reset by peer")])
def test_one_process_waits_for_no_other_rank(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _break(monkeypatch, error)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["report"]) == 1
    assert "rank" not in capsys.readouterr().err


def test_an_error_found_on_the_way_is_told_and_not_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = ValueError("no type fits")
    outer.__cause__ = InputError("`validation` is a share between 0 and 1.")
    _break(monkeypatch, outer)
    assert cli.main(["report"]) == 2
    assert capsys.readouterr().err == "dpr report: `validation` is a share between 0 and 1.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of metrics is written to a device that is always full."""
    config = write_sft_config(
        tmp_path,
        {"source": workspace.sft},
        workspace.demonstrations,
        trainer={
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}},
            "log_every_n_steps": 1,
        },
    )
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    os.symlink("/dev/full", folder / "metrics.csv")
    code = cli.main(["fit", "--config", config, "--trainer.logger.init_args.version", "0"])
    assert code == 2
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert cli.main(["export", "--source", workspace.sft, "--output", str(tmp_path / "out")]) == 2
    assert "Permission denied" in capsys.readouterr().err


def _break(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have every command end with this error."""

    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "run", fail)
