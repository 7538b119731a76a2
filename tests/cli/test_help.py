"""``--help``: one screen a command, in no time, whose options exist."""

import gc
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dpr_lightning import callbacks, data, modules
from dpr_lightning.cli import help_pages, libraries
from dpr_lightning.cli.command_table import GROUPS, MODULES, WORKFLOW, command_function, function_name
from dpr_lightning.cli.help_pages import CLASSES, TOPICS, help_page
from dpr_lightning.cli.main import main
from dpr_lightning.cli.source_help import read_signature
from dpr_lightning.errors import InputError
from dpr_lightning.lightning_cli import LIGHTNING_COMMANDS
from dpr_lightning.lightning_cli.dpr_cli import parse_lightning
from tests.workspace import Workspace, write_dpr_config, write_sft_config

COMMANDS = [name for group in GROUPS.values() for name in group]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_is_one_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command in WORKFLOW:
        with pytest.raises(SystemExit):
            main([command, "--help"])
    else:
        assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: dpr {command} ")
    assert len(page.splitlines()) <= 60
    if command in LIGHTNING_COMMANDS:
        assert len(page.splitlines()) <= 40
    assert max(map(len, page.splitlines())) <= 120


def test_help_and_refusals_wait_for_no_library() -> None:
    script = """
    import sys
    from dpr_lightning.cli.main import main
    for arguments in ("--help", "fit --help", "check -h", "preview -h", "fit --help trainer", "nothing"):
        try:
            main(arguments.split())
        except SystemExit:
            pass
    mistakes = ("sft --epoch 3", "check", *(f"{name} --run nothing" for name in ("check", "rl", "chat", "rewards")))
    assert [main(arguments.split()) for arguments in mistakes] == [2] * len(mistakes)
    assert not {"torch", "lightning", "transformers", "numpy"} & set(sys.modules), sys.modules
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    assert time.monotonic() - began < 10  # some 0.3 s, on a machine that does nothing else


def test_importing_collects_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch is new to the process; later, a collection must not be kept from looking at what may be garbage."""
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with libraries._no_collections():
        assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "torch")
    with libraries._no_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [False]


@pytest.mark.slow
def test_scipy_is_whole_for_those_who_import_it_later() -> None:
    script = """
    import sys
    from dpr_lightning.cli.libraries import settle_libraries
    settle_libraries()
    assert "torchmetrics" in sys.modules
    assert not {"scipy.signal", "scipy.stats", "wandb", "deepspeed"} & set(sys.modules)
    from scipy.signal import hilbert
    import scipy
    assert scipy.signal.hilbert is hilbert
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)


def screen_options() -> list[str]:
    """The options of the screen of fit, with the values that stand there."""
    lines = re.findall(r"^  (--\w+\.\S+ (?:'.*?'|\S+))", help_pages.LIGHTNING_SCREEN, flags=re.MULTILINE)
    assert len(lines) > 12
    return lines


def test_the_options_of_the_screen_exist(tmp_path: Path, workspace: Workspace) -> None:
    """The parser takes each; a wrong one is refused."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    configs = {
        "sft": write_sft_config(
            tmp_path, {"source": workspace.sft}, workspace.demonstrations, model={"optimizer": optimizer}
        ),
        "rl": write_dpr_config(tmp_path, workspace),
    }
    of_rl = [line for line in screen_options() if line.startswith("--data.prompts")]
    for name, lines in (("rl", of_rl), ("sft", [line for line in screen_options() if line not in of_rl])):
        text = " ".join(lines).replace("FOLDER", str(tmp_path)).replace("FILE", workspace.demonstrations)
        config = parse_lightning(["fit", "--config", configs[name], *shlex.split(text)])
        assert config["data"]["class_path"]
    assert config["model"]["init_args"]["policy"]["lora"]["rank"] == 16
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert config["run"]["references"] == [0.25, 0.5]


@pytest.mark.parametrize("command", MODULES)
def test_a_page_has_the_parameters_of_its_function(command: str) -> None:
    function = command_function(command)
    options = read_signature(MODULES[command], function_name(command)).options
    parameters = inspect.signature(function).parameters
    assert [option.name for option in options] == list(parameters)
    assert [option.default is None for option in options] == [
        parameter.default is inspect.Parameter.empty for parameter in parameters.values()
    ]
    assert all(option.text for option in options)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_section_has_the_parameters_of_its_class(topic: str) -> None:
    _, module, name = TOPICS[topic]
    kind = getattr(importlib.import_module(module), name)
    assert [option.name for option in read_signature(module, name).options] == list(inspect.signature(kind).parameters)
    assert f"  {TOPICS[topic][0]}" in str(help_page(["fit", "--help", topic]))


def test_a_class_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    for section, package in (("model", modules), ("data", data), ("callbacks", callbacks)):
        listed = CLASSES[section][2] or callbacks.__all__
        assert all(hasattr(package, name) for name in listed)
        page = str(help_page(["fit", "--help", section]))
        assert all(f"  {name}\n" in page for name in listed)
        for name in listed:
            assert help_page(["fit", "--help", f"{section}.{name}"])
    assert main(["fit", "-h", "model.SelfPlay"]) == 0
    assert re.search(r"--model.loss spin +spin \(the same as dpo\)", capsys.readouterr().out)


def test_fields_of_an_option_of_another_command() -> None:
    assert "--reward.form log_ratio" in str(help_page(["preview", "--help", "reward"]))
    assert re.search(r"  every_s +least time", str(help_page(["fit", "--help", "callbacks.ProgressLines"])))
    assert "`dpr preview --help reward`" in str(help_page(["preview", "--help"]))
    assert "`dpr judge --help endpoint`" in str(help_page(["judge", "--help"]))
    assert "--endpoint.base_url " in str(help_page(["judge", "--help", "endpoint"]))
    assert "--lora.rank 16" in str(help_page(["export", "--help", "lora"]))


def test_a_path_has_no_fields() -> None:
    assert "--help policy" not in str(help_page(["evaluate", "--help"]))
    with pytest.raises(InputError, match=r"no topic 'policy'\. Topics are reward, all"):
        help_page(["evaluate", "--help", "policy"])


def test_a_default_by_the_name_of_a_constant_is_its_value() -> None:
    assert "--model.policy.attention auto" in str(help_page(["fit", "--help", "policy"]))


@pytest.mark.parametrize("topic", ["nothing", "model.Nothing", "data."])
def test_an_unknown_topic(topic: str) -> None:
    if topic == "data.":
        assert help_page(["fit", "--help", topic]) == help_page(["fit", "--help", "data"])
        return
    with pytest.raises(InputError, match=f"no topic '{topic}'. Topics are"):
        help_page(["fit", "--help", topic])


def test_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "--help", "all"])
    assert ended.value.code == 0
    assert "(required, type:" in capsys.readouterr().out
    assert help_page(["fit", "--config", "x.yaml"]) is None
