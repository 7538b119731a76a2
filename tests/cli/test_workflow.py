"""The path of a newcomer: a model and a file of their own, `dpr sft`, `check`, `rl`, `chat`, `export`, no YAML."""

import html
import io
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpr_lightning.check_result import CheckResult
from dpr_lightning.cli.main import main
from dpr_lightning.cli.run_options import with_run_options
from dpr_lightning.data.row_types import row_hash
from dpr_lightning.run_manifest import RunManifest, record_stage
from dpr_lightning.workflow import check_extent, check_size
from tests.tiny import write_tiny_policy
from tests.workspace import write_rows

CLEAN = ["clean", "--run", "runs/mine"]
SFT = ["--train", "mine.jsonl", "--output", "runs/mine", "--verifier", "numeric"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user after SFT: their model, their rows with columns of their own, and a run."""
    folder = tmp_path_factory.mktemp("user")
    write_tiny_policy(folder / "base", hidden_size=64)
    rows = [{"question": f"{a}+{b}=", "answer": f"sum {a + b}"} for a in range(16) for b in range(8)]
    random.Random(0).shuffle(rows)
    write_rows(folder / "mine.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = ["--epochs", "5", "--learning_rate", "3e-3", "--set", "run.wandb=off"]
        assert main(["sft", "--model", "base", *SFT, *arguments]) == 0
    return folder


@pytest.fixture
def user(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which the test runs."""
    shutil.copytree(trained, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def test_sft_leaves_a_run_that_its_config_repeats(user: Path) -> None:
    config = yaml.safe_load(Path("runs/mine/sft.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 3e-3
    assert config["trainer"]["max_epochs"] == 5
    assert config["run"]["wandb"] is False  # as YAML reads `off`
    held_out = [json.loads(line) for line in Path("runs/mine/held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == 20
    assert set(held_out[0]) == {"question", "answer"}
    manifest = RunManifest.load("runs/mine")
    assert list(manifest.references) == ["0.25", "0.5", "0.75"]
    assert manifest.held_out == "runs/mine/held_out.jsonl"
    before = Path("runs/mine/sft/policies/final/model.safetensors").read_bytes()
    assert main(["fit", "--config", "runs/mine/sft.yaml", "--ckpt_path", "none"]) == 0
    assert Path("runs/mine/sft/policies/final/model.safetensors").read_bytes() == before


def test_a_refused_command_leaves_the_config_of_the_run(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("runs/mine/sft.yaml").read_text()
    assert main(["sft", "--model", "base", *SFT, "--epochs", "5", "--seed", "1"]) == 2
    printed = capsys.readouterr()
    assert "are of another run" in printed.err
    assert "seed_everything: 0 then, 1 now" in printed.err
    assert "learning_rate" not in printed.out
    assert Path("runs/mine/sft.yaml").read_text() == before


def test_a_finished_run_names_options_that_it_did_not_use(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["sft", "--model", "base", *SFT, "--epochs", "5", "--learning_rate", "0.1"]) == 0
    assert "nothing was left to do. It did not use model.init_args.optimizer.init_args.lr: 0.003 then, 0.1 now." in (
        caplog.text
    )


def test_an_error_names_the_option_of_the_command(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("other.jsonl"), [{"frage": f"{n}+1=", "antwort": str(n + 1)} for n in range(30)])
    arguments = ["sft", "--model", "base", "--train", "other.jsonl", "--output", "runs/other"]
    arguments += ["--set", "trainer.max_steps=1", "--set", "run=null"]
    assert main(arguments) == 2
    assert "Say with `--columns` (`data.columns`) what the file calls the prompt" in capsys.readouterr().err
    assert main([*arguments, "--columns", "prompt=frage,completion=antwort"]) == 0


def test_from_check_to_an_exported_policy(
    user: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = main(["check", "--run", "runs/mine", "--prompts", "12", "--samples", "4"])
    result = json.loads(Path("runs/mine/check/check.json").read_text())
    assert code == {"train": 0, "nothing_found": 3, "not_ranked": 4}[result["outcome"]]
    printed = " ".join(capsys.readouterr().out.split())
    assert result["reasons"][0] in printed
    assert result["reasons"][0].startswith("Validation loss still falls")
    assert "`trainer.max_epochs` 10 (`dpr sft`: --epochs 10)" in result["reasons"][0]
    assert "Mark them on runs/mine/check/audit.html" in printed
    assert f"Next: {'dpr rl --run runs/mine' if code == 0 else 'train SFT for longer'}" in printed
    assert len(page_rows("runs/mine/check/audit.html")) == 12

    Path("runs/mine/check/check.json").write_text(json.dumps({"outcome": "nothing_found", "reasons": ["It is noise."]}))
    assert main(["rl", "--run", "runs/mine", "--steps", "2"]) == 3
    assert "It is noise. To train on it nevertheless, add --anyway." in capsys.readouterr().out
    assert not Path("runs/mine/rl").exists()

    reward = {"form": "one_sided"}
    content = {"outcome": "train", "reasons": [], "reward": reward, "beta": 0.5, "reference": "0.5"}
    Path("runs/mine/check/check.json").write_text(json.dumps(content))
    arguments = ["--steps", "2", "--learning_rate", "1e-3", "--set", "run.wandb=off"]
    assert main(["rl", "--run", "runs/mine", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "Next, talk to it: dpr chat --run runs/mine\n" in printed
    assert "Next, a plain Hugging Face folder: dpr export --run runs/mine --output my-model\n" in printed
    assert main(["rl", "--run", "runs/mine", *arguments, "--beta", "0.6"]) == 2
    assert "begin anew with `--ckpt_path none`" in capsys.readouterr().err
    assert main(["rl", "--run", "runs/mine", *arguments, "--ckpt_path", "none"]) == 0
    config = yaml.safe_load(Path("runs/mine/rl.yaml").read_text())
    assert config["data"]["init_args"]["reward"] == reward
    assert config["data"]["init_args"]["references"] == [RunManifest.load("runs/mine").references["0.5"]]
    assert config["model"]["init_args"]["kl"] == {"coefficient": 0.5}
    assert RunManifest.load("runs/mine").policy == "runs/mine/rl/policies/final"

    assert main(["report", "--run", "runs/mine"]) == 0
    page = Path("runs/mine/report.html").read_text("utf-8")
    assert page.index("<h3>sft: SupervisedIRL</h3>") < page.index("<h3>rl: DensePathReinforce</h3>")
    assert page.count("<figcaption>Gradient norm") == 2
    assert re.search(r'<article class="sample" data-is="step \d+">.*?data-reward="-?\d', page, re.DOTALL)
    assert re.search(r"data.train</th><td>file [0-9a-f]{16}", page)
    capsys.readouterr()

    monkeypatch.setattr(sys, "stdin", io.StringIO("3+4=\n\n5+1=\n"))
    assert main(["chat", "--run", "runs/mine", "--temperature", "0"]) == 0
    answers = re.findall(r"\[reward [+-]\d+\.\d\d nats over \d+ tokens\]", capsys.readouterr().out)
    assert len(answers) == 2

    assert main(["export", "--run", "runs/mine", "--output", "my-model"]) == 0
    model = AutoModelForCausalLM.from_pretrained("my-model")
    tokenizer = AutoTokenizer.from_pretrained("my-model")
    expected = AutoModelForCausalLM.from_pretrained("runs/mine/rl/policies/final")
    prompt = tokenizer("3+4=", return_tensors="pt")
    assert model(**prompt).logits.equal(expected(**prompt).logits)


def test_a_check_says_what_audit_and_preview_say_of_the_same_samples(user: Path) -> None:
    arguments = ["--run", "runs/mine", "--max_new_tokens", "12"]
    assert main(["check", *arguments, "--prompts", "10", "--samples", "4"]) in (0, 3, 4)
    alone = ["--limit", "10", "--output"]
    assert main(["audit", *arguments, "--samples", "4", *alone, "audit.json"]) in (0, 3)
    assert main(["preview", *arguments, "--samples", "4", *alone, "preview.json"]) in (0, 4)
    for name in ("audit", "preview"):
        ours = json.loads(Path(f"runs/mine/check/{name}.json").read_text())
        alike(ours, json.loads(Path(f"{name}.json").read_text()))


def alike(ours: Any, theirs: Any) -> None:
    """Compare JSON, numbers but for rounding."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = [*ours.values()], [*theirs.values()]
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            alike(one, other)
    else:
        assert ours == (pytest.approx(theirs, abs=1e-4) if isinstance(theirs, float) else theirs)


def test_a_check_without_a_gpu_says_what_it_did_not_look_at(
    user: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_extent, "CPU_BUDGET", 1.0)
    monkeypatch.setattr(check_extent, "FEWEST_PROMPTS", 6)
    assert main(["check", "--run", "runs/mine", "--max_new_tokens", "4"]) in (0, 3, 4)
    note = (
        "Without a GPU the check looks at 6 of 20 held-out rows with 8 answers to each, and not at the references at "
        "0.5, 0.75. --prompts 100 --samples 16 looks at as much as on a GPU."
    )
    assert note in capsys.readouterr().out
    assert json.loads(Path("runs/mine/check/check.json").read_text())["reasons"][-1] == note
    audits = json.loads(Path("runs/mine/check/audit.json").read_text())["audits"]
    assert {audit["reference"] for audit in audits} == {RunManifest.load("runs/mine").references["0.25"]}
    assert len(page_rows("runs/mine/check/audit.html")) == 6


@pytest.mark.parametrize(
    ("rows", "billions", "options", "expected"),
    [
        (20, 0.1345, {}, (20, 13, True)),
        (100, 0.135, {}, (27, 8, True)),
        (400, 0.03, {}, (100, 11, True)),
        (400, 0.001, {}, (100, 16, False)),
        (400, 8.0, {}, (20, 8, True)),
        (8, 8.0, {}, (8, 8, True)),
        (400, 8.0, {"on_gpu": True}, (100, 16, False)),
        (400, 8.0, {"prompts": 50}, (50, 16, False)),
        (400, 8.0, {"samples": 4}, (20, 4, True)),
    ],
)
def test_the_size_of_a_check(rows: int, billions: float, options: dict[str, Any], expected: tuple[int, ...]) -> None:
    extent = check_size(rows, int(billions * 1e9), (369, 64), ("0.5",), **({"on_gpu": False} | options))
    assert (extent.prompts, extent.samples, extent.left_out == ("0.5",)) == expected
    assert bool(extent.describe(rows)) is expected[-1]


def page_rows(page: str) -> list[dict[str, object]]:
    """The rows of an audit's page, as its button exports them."""
    return [json.loads(html.unescape(row)) for row in re.findall(r"data-row='(.*?)'", Path(page).read_text("utf-8"))]


@pytest.mark.parametrize("rows", ["train", "held_out"])
def test_from_the_page_of_an_audit_to_a_run_on_cleaned_rows(
    rows: str, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rows", "train"] if rows == "train" else ["--samples", "1"]
    assert main(["audit", "--run", "runs/mine", *arguments]) in (0, 3)
    printed = capsys.readouterr().out
    assert ("These rows were trained on" in printed) == (rows == "train")
    exported = page_rows("runs/mine/audit/train.html" if rows == "train" else "runs/mine/audit/audit.html")
    assert len(exported) == {"train": 108, "held_out": 20}[rows]
    # Rows that were held out are not among those that were trained on.
    held_out = Path("runs/mine/held_out.jsonl").read_text().splitlines()
    mine = Path("mine.jsonl").read_text().splitlines()
    lines = {"train": mine, "held_out": held_out}[rows]
    listed = [lines[int(str(row["row"])) - 1] for row in exported]
    assert set(listed).isdisjoint(held_out) == (rows == "train")

    write_rows(Path("flagged.jsonl"), exported[:3])
    assert main(["clean", "--run", "runs/mine", "--flagged", "flagged.jsonl", "--output", "cleaned.jsonl"]) == 0
    assert Path("cleaned.jsonl").read_text().splitlines() == [line for line in mine if line not in listed[:3]]
    printed = capsys.readouterr().out
    assert "cleaned.jsonl: 125 rows. 3 rows dropped; 3 rows flagged." in printed
    if rows == "train":
        list_of_all = ["--flagged", "runs/mine/audit/train.listed.jsonl", "--top", "5", "--how", "mask"]
        assert main(["clean", "--run", "runs/mine", *list_of_all, "--output", "masked.jsonl"]) == 0
        masked = [json.loads(line) for line in Path("masked.jsonl").read_text().splitlines()]
        assert len(masked) == len(mine)
        spans = {row["question"]: row["loss_spans"] for row in masked if "loss_spans" in row}
        assert {json.loads(line)["question"] for line in listed[:5]} >= set(spans)
        for row in masked:
            for span in row.get("loss_spans", []):
                assert row["answer"][span["start"] : span["end"]] == span["text"]
        assert capsys.readouterr().out.count("had no part to change") == (len(spans) < 5)
    command = shlex.split(printed.partition("Next: dpr ")[2])
    assert main([*command, "--epochs", "0.1", "--set", "run.wandb=off"]) == 0
    assert RunManifest.load("runs/cleaned").train == str(user / "cleaned.jsonl")


def test_cleaned_rows_do_not_get_among_those_that_they_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    rows = [{"prompt": f"{n}", "completion": "c"} for n in range(3)]
    write_rows(Path("data/mine.jsonl"), rows)
    record_stage(Path("run/run.json"), "sft", {"train": str(tmp_path / "data"), "policy": {}})
    flag = {"file": "data/mine.jsonl", "row": 2, "hash": row_hash(rows[1])}
    write_rows(Path("flagged.jsonl"), [flag])
    arguments = ["clean", "--run", "run", "--flagged", "flagged.jsonl", "--output"]
    assert main([*arguments, "data/cleaned.jsonl"]) == 2
    assert "which the run's `train` reads" in capsys.readouterr().err
    assert main([*arguments, "cleaned.jsonl"]) == 0
    assert [json.loads(line) for line in Path("cleaned.jsonl").read_text().splitlines()] == [rows[0], rows[2]]


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["evaluate", "--limit", "4"], None),
        (["generate", "--limit", "2"], None),
        (["rewards", "--limit", "4"], "rewards/heatmap.html"),
        (["preview", "--limit", "4", "--samples", "2"], None),
        (["audit", "--limit", "4", "--samples", "1"], "audit/audit.html"),
        (["best_of", "--limit", "4", "--samples", "2"], "best_of/best_of.json"),
        (["report"], "report.html"),
        (["plan"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_other_commands_take_the_run(command: list[str], output: str | None, user: Path) -> None:
    assert main([*command[:1], "--run", "runs/mine", *command[1:]]) in (0, 3, 4)
    if output is not None:
        assert Path("runs/mine", output).is_file()


@pytest.mark.parametrize("command", ["rewards", "best_of", "serve-reward"])
def test_commands_on_the_reward_take_what_the_check_found(command: str, user: Path) -> None:
    CheckResult("train", reward={"form": "one_sided"}, reference="0.5").save(Path("runs/mine"))
    arguments = with_run_options(command, ["--run", "runs/mine"])
    assert '--reward={"form": "one_sided"}' in arguments
    assert f'--references=["{RunManifest.load("runs/mine").references["0.5"]}"]' in arguments
    assert not [each for each in with_run_options("preview", ["--run", "runs/mine"]) if each.startswith("--reward")]
    for own in ("--reward.form=log_ratio", "--reward={form: log_ratio}"):
        assert [own] == [each for each in with_run_options(command, ["--run=runs/mine", own]) if "--reward" in each]


def test_token_rewards_are_those_of_the_check(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CheckResult("train", reward={"form": "one_sided"}, reference="0.5").save(Path("runs/mine"))
    assert main(["rewards", "--run", "runs/mine", "--limit", "4"]) == 0
    assert "The reward is one_sided, as `dpr check` found" in capsys.readouterr().err
    rewards = pq.read_table("runs/mine/rewards/rewards.parquet")["reward"].to_pylist()
    assert max(value for row in rewards for value in row) <= 0


def test_options_of_the_command_line_take_precedence(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--run=runs/mine", "--policy", "nowhere", "--limit", "2"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_overlays_and_options_are_in_the_config(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that an overlay names brings its own options."""
    Path("overlay.yaml").write_text(
        "model: {init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}}}\n"
        "trainer: {max_steps: 7}\n"
    )
    arguments = ["--config", "overlay.yaml", "--config", "recipe:strategy/ddp", "--set", "model.schedule.kind=constant"]
    arguments += ["--set=model.optimizer.lr=1e-2", "--lora", "4", "--limit", "30", "--write_only", "--trim"]
    arguments += ["--set", "model.trim.after=0.25"]
    assert main(["init", "new", "--model", "base", "--train", "mine.jsonl", *arguments]) == 0
    config = yaml.safe_load(Path("new/sft.yaml").read_text())
    options = config["model"]["init_args"]
    assert options["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
    assert options["schedule"] == {"kind": "constant", "warmup_fraction": 0.06}
    assert options["policy"]["lora"] == {"rank": 4, "alpha": 8.0, "target_modules": "all-linear"}
    assert options["trim"] == {"after": 0.25}
    assert config["trainer"]["max_steps"] == 7
    assert config["trainer"]["strategy"] == "ddp"
    assert not Path("new/sft").exists()
    assert "Next: dpr fit --config new/sft.yaml" in capsys.readouterr().out
    assert main(["plan", "--config", "new/sft.yaml", "--trainer.strategy=auto"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sft", "--model", "base"], "arguments are required: --train"),
        (["sft", "--model", "base", "--train", "no.jsonl"], "no.jsonl"),
        (["sft", "--model", "nowhere", "--train", "mine.jsonl"], "nowhere"),
        (["sft", "--model", "./bas", "--train", "mine.jsonl"], "There is no folder './bas'. Did you mean base?"),
        (
            ["sft", "--model", "base", *SFT, "--verifier", "numerc"],
            "There is no verifier 'numerc'. Did you mean 'numeric'",
        ),
        (["sft", "--model", "base", *SFT, "--epochs", "1.5"], "whole number, or below 1"),
        (["sft", "--model", "base", *SFT, "--lora", "-1"], "at least 1"),
        (["sft", "--model", "base", *SFT, "--set", "trainer.max_step=3"], "max_step"),
        (["sft", "--model", "base", *SFT, "--set", "max_steps"], "write OPTION=VALUE"),
        (["sft", "--model", "base", *SFT, "--config", "recipe:toy/stf"], "Did you mean recipe:toy/sft?"),
        (["sft", "--model", "base", *SFT, "--columns", "question"], "write prompt=question,completion=answer"),
        (["rl", "--run", "runs/mine"], "was not checked: run `dpr check --run runs/mine`"),
        (["rl", "--run", "elsewhere"], "there is no such folder"),
        (["check", "--run", "runs/mine", "--reference", "0.3"], "has no reference at 0.3, but at 0.25, 0.5, 0.75"),
        ([*CLEAN, "--flagged", "no.jsonl", "--output", "new.jsonl"], "no.jsonl"),
        ([*CLEAN, "--flagged", "mine.jsonl", "--output", "new.jsonl"], "mine.jsonl:1: 'file' is None"),
        ([*CLEAN, "--flagged", "mine.jsonl", "--output", "new.csv"], "new.csv is written as JSON lines"),
        ([*CLEAN, "--flagged", "flags.jsonl", "--output", "mine.jsonl"], "mine.jsonl exists already"),
        ([*CLEAN, "--flagged", "flags.jsonl", "--output", "flags.jsonl"], "which `flagged` reads"),
        ([*CLEAN, "--flagged", "mine.jsonl", "--output", "base/a.jsonl"], "'file' is None"),
        ([*CLEAN, "--flagged", "mine.jsonl", "--output", "flags.jsonl"], "flags.jsonl exists already"),
        (["audit", "--run", "runs/mine", "--max_length", "9"], "options of `rows: train` alone"),
        (["audit", "--run", "runs/mine", "--output", "new.html"], "Write a name in .json"),
        (["chat"], "takes --run FOLDER or --policy FOLDER"),
        (["evaluate", "--run"], "`--run` takes the folder of a run"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], says: str, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("flags.jsonl"), [{"file": "mine.jsonl", "row": 1, "hash": "ab", "action": "drop"}])
    before = sorted(map(str, Path("runs").rglob("*")))
    assert main(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert sorted(map(str, Path("runs").rglob("*"))) == before


def test_help_and_recipes_load_no_library() -> None:
    code = (
        "import sys; from dpr_lightning.cli.main import main\n"
        "for arguments in (['recipes'], ['sft', '--help']):\n"
        "    try:\n        main(arguments)\n    except SystemExit as ended:\n        assert not ended.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 110
    listed = [line.split(None, 1) for line in lines if line.startswith("recipe:")]
    assert {name for name, _ in listed} >= {"recipe:qwen3_0.6b/sft", "recipe:toy/sft", "recipe:strategy/ddp"}
    assert all(text for _, text in listed)
