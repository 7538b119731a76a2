"""The commands of ``dpr``: their modules, and a line on each for ``dpr --help``. Nothing is imported for it."""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

from dpr_lightning.errors import InputError


class Command(NamedTuple):
    """A command of ``dpr``.

    ``text``: its line; ``module``: with the function of its name, None for LightningCLI and ``dpr plan``;
    ``parses_arguments``: whether that function takes the command line, instead of an option a parameter.
    """

    text: str
    module: str | None = None
    parses_arguments: bool = False


def _command(text: str, module: str) -> Command:
    return Command(text, f"dpr_lightning.cli.{module}")


def _workflow(text: str, module: str) -> Command:
    return _command(text, module)._replace(parses_arguments=True)


GROUPS = {
    "From your file to a better model": {
        "sft": _workflow("fine-tune a model on demonstrations, and keep checkpoints as references", "sft_command"),
        "check": _workflow("is the reward of that run worth training on? Preview and audit", "check_command"),
        "rl": _workflow("improve the policy on that reward: Dense-Path REINFORCE", "rl_command"),
        "clean": _workflow("the training rows without those that you marked as wrong", "clean_command"),
        "chat": _workflow("talk to the policy; token rewards of its answers in colour", "chat_command"),
        "export": _command("the policy as a plain Hugging Face folder", "export_command"),
        "init": _workflow("write the config of a run, to read and change before `dpr fit`", "sft_command"),
        "recipes": _workflow("list the packaged configs, for --config recipe:NAME", "recipes_command"),
    },
    "Train with a config": {
        "fit": Command("train: the config names the algorithm, such as SupervisedIRL or DensePathReinforce"),
        "validate": Command("metrics of a policy on held-out demonstrations"),
        "test": Command("the same on a test set"),
        "predict": Command("what a module predicts of each row"),
        "plan": Command("the memory that `fit` with the same arguments takes on each rank"),
    },
    "Before reinforcement learning": {
        "preview": _command("where would this reward lead?", "preview_command"),
        "audit": _command("does the reward separate right from wrong?", "audit_command"),
        "rewards": _command("token rewards of prompt/response pairs in a file, with a heat-map", "rewards_command"),
        "best_of": _command("the best of n samples, by the reward, a verifier head, an oracle", "best_of_command"),
    },
    "Use and measure a policy": {
        "generate": _command("answers to prompts, plain or with decode-time contrast", "generate_command"),
        "pairs": _command("pairs of its responses, labelled by a judge, to learn preferences from", "pairs_command"),
        "evaluate": _command("the share of prompts answered right, by a verifier", "generate_command"),
        "judge": _command("which of two policies answers better, judged by another model", "judge_command"),
        "harness": _command("benchmarks of lm-eval, on a policy folder", "harness_command"),
        "serve-reward": _command("the reward over HTTP, for OpenRLHF and other trainers", "serve_reward_command"),
        "report": _command("the HTML report of a run folder", "report_command"),
    },
    "Experiments": {
        "toy": _command("a tiny policy and demonstrations with a verifier, to try the configs on", "toy_command"),
        "quickstart": _command("the whole path on a toy, in minutes on a CPU", "quickstart_command"),
        "smollm2": _command("the whole path with SmolLM2-135M and LoRA, 50 minutes on two cores", "smollm2_command"),
        "gap": _command("is right easier to recognise than to write? Offline against online DPO", "gap_command"),
        "compare": _command("many arms over seeds: what is better than SFT, and how sure are we?", "compare_command"),
    },
}
"""Commands by the heading under which ``dpr --help`` lists them."""

_ALL = {name: command for group in GROUPS.values() for name, command in group.items()}
WORKFLOW = tuple(name for name, command in _ALL.items() if command.parses_arguments)
"""Commands that parse their arguments themselves; their help needs no library."""
MODULES = {name: command.module for name, command in _ALL.items() if command.module and not command.parses_arguments}
"""Modules of the commands whose options are the parameters of their function."""


def overview() -> str:
    """The page of ``dpr --help``."""
    lines = ["usage: dpr COMMAND [options]", "", "From demonstrations to a dense reward to a better policy."]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {name:13}{command.text}" for name, command in commands.items())]
    last = "`dpr COMMAND --help` lists its options. --debug, anywhere, shows the traceback of an error."
    return "\n".join([*lines, "", last])


def check_command(name: str) -> None:
    """Called before anything is imported.

    Raises:
        InputError: there is no such command; with the nearest one.
    """
    if name not in _ALL:
        near = get_close_matches(name, _ALL, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"There is no command {name!r}.{meant} Commands are: {', '.join(_ALL)}.")


def function_name(command: str) -> str:
    """The name of a command's function: its own, with underscores for hyphens."""
    return command.replace("-", "_")


def command_function(command: str) -> Callable[..., Any]:
    """Import the module of a command, and return its function."""
    module = _ALL[command].module
    assert module is not None
    function: Callable[..., Any] = vars(import_module(module))[function_name(command)]
    return function
