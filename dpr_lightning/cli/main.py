"""The command ``dpr``."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from dpr_lightning.cli.recipes_command import with_recipe_paths
from dpr_lightning.cli.run_options import with_configs_of_run, with_run_options
from dpr_lightning.errors import DEBUG, REQUEUE, InputError, TryAgain

HELP = """usage: dpr COMMAND [options]

From demonstrations to a dense reward to a better policy.

  sft         fine-tune a model on a file of demonstrations, and keep earlier checkpoints as references
  check       is the reward of that run worth training on? Preview and audit
  rl          improve the policy on that reward: Dense-Path REINFORCE
  chat        talk to the policy; token rewards of its answers in colour
  export      the policy as a plain Hugging Face folder
  init        write the config of a run, to read and change before `dpr fit`
  recipes     list the packaged configs, for --config recipe:NAME

  fit         train: a config's class_path picks SupervisedIRL or DensePathReinforce   (LightningCLI)
  validate    metrics of a policy on held-out demonstrations                           (LightningCLI)
  test        the same on a test set                                                   (LightningCLI)
  predict     LightningCLI's predict                                                   (LightningCLI)

  plan        the memory that `fit` with the same arguments takes on each rank; --what_helps: options that lower it

  toy         a tiny policy and demonstrations with a verifier, to try the configs on
  quickstart  the whole path on a toy, in minutes on a CPU
  smollm2     the whole path with SmolLM2-135M and LoRA; about 50 minutes on two CPU cores
  compare     many arms, over seeds, from one config: what is better than SFT, and how sure are we?
  preview     before any reinforcement learning: where would this reward lead?
  audit       before any reinforcement learning: does the reward separate right from wrong?
  best_of     the best of n samples, by the reward, by a trained verifier head, by an oracle
  rewards     token rewards for a file of prompt/response pairs, with a heat-map
  serve-reward
              the reward over HTTP, for OpenRLHF and other trainers
  generate    answers to prompts, plain or with decode-time contrast
  evaluate    verifier score, length and reverse KL of a policy
  harness     benchmarks of lm-eval, on a policy folder
  judge       which of two policies answers better, judged by another model
  report      the HTML report of a run folder

`dpr COMMAND --help` lists its options. --debug, anywhere, shows the traceback of an error."""

_LIBRARIES = (
    r"(dpr_lightning|torch|lightning|transformers|peft|accelerate|datasets|huggingface_hub|safetensors"
    r"|torchmetrics|torchao|deepspeed|vllm|wandb|jsonargparse|pydantic|multiprocess|dill)(\.|$)"
)
"""Modules whose warnings about a later version of a library no user can act on."""


WORKFLOW = {
    "sft": "sft_command",
    "init": "sft_command",
    "check": "check_command",
    "rl": "rl_command",
    "chat": "chat_command",
    "recipes": "recipes_command",
}
"""The modules of commands whose help needs no library."""


def _commands() -> dict[str, Callable[..., Any]]:
    """The commands by name. Imported here, so that `dpr --help` does not wait for torch."""
    from dpr_lightning.cli.audit_command import audit
    from dpr_lightning.cli.best_of_command import best_of
    from dpr_lightning.cli.compare_command import compare
    from dpr_lightning.cli.export_command import export
    from dpr_lightning.cli.generate_command import evaluate, generate
    from dpr_lightning.cli.harness_command import harness
    from dpr_lightning.cli.judge_command import judge
    from dpr_lightning.cli.preview_command import preview
    from dpr_lightning.cli.quickstart_command import quickstart
    from dpr_lightning.cli.report_command import report
    from dpr_lightning.cli.rewards_command import rewards
    from dpr_lightning.cli.serve_reward_command import serve_reward
    from dpr_lightning.cli.smollm2_command import smollm2
    from dpr_lightning.cli.toy_command import toy

    before_training = (preview, audit, best_of, rewards)
    functions = (
        toy,
        quickstart,
        smollm2,
        compare,
        *before_training,
        generate,
        evaluate,
        harness,
        judge,
        report,
        export,
    )
    return {function.__name__: function for function in functions} | {"serve-reward": serve_reward}


def _workflow_command(name: str) -> Callable[[Sequence[str]], Any]:
    """The function of a command of :data:`WORKFLOW`, which parses its arguments itself."""
    module = import_module(f"dpr_lightning.cli.{WORKFLOW[name]}")
    function: Callable[[Sequence[str]], Any] = vars(module)[name]
    return function


def _settle_libraries() -> None:
    """Set how long waiting threads spin and how freed memory is reused, and silence output of libraries."""
    # Threads that spin while they wait, OpenMP's default, cost several times the step where another process wants the
    # core; those that sleep at once make decoding take half as long again. These spin for some 50 µs (measured, see
    # docs/results.md). Has to be set before torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    import torch
    from transformers.utils import logging as transformers_logging

    from dpr_lightning.engine.host_memory import retain_freed_memory

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        retain_freed_memory()
    if not sys.warnoptions:  # `python -W` or PYTHONWARNINGS show them
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
    transformers_logging.disable_progress_bar()


def _print_any_character() -> None:
    """Print a character that the encoding of the terminal or pipe lacks, such as β, as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str]) -> Any:
    """Run one command; errors come as exceptions."""
    command, *rest = arguments
    if command == "recipes" or (command in WORKFLOW and {"-h", "--help"} & {*rest}):
        return _workflow_command(command)(rest)
    _settle_libraries()
    from dpr_lightning.lightning_cli.configs import check_configs, config_files
    from dpr_lightning.lightning_cli.dpr_cli import LIGHTNING_COMMANDS, run_lightning

    rest = with_recipe_paths(rest)
    check_configs(rest)
    if command in WORKFLOW:
        return _workflow_command(command)(rest)
    if command in LIGHTNING_COMMANDS:
        ended = run_lightning([command, *rest])
        if command == "fit":
            from dpr_lightning.lightning_cli.saved_policies import print_saved

            print_saved(ended.trainer, ended.datamodule)
        return ended
    if command == "plan":
        from dpr_lightning.cli.plan_command import WHAT_HELPS, plan, what_helps

        rest = with_configs_of_run(rest)
        fit_arguments = [argument for argument in rest if argument != WHAT_HELPS]
        print(plan(fit_arguments) if fit_arguments == rest else what_helps(fit_arguments))
        return 0
    commands = _commands()
    if command not in commands:
        names = [*WORKFLOW, *LIGHTNING_COMMANDS, "plan", *commands]
        near = get_close_matches(command, names, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"There is no command {command!r}.{meant} Commands are: {', '.join(names)}.")
    from jsonargparse import auto_cli

    from dpr_lightning.lightning_cli.path_checks import guarded

    return auto_cli(
        guarded(commands[command], config_files(rest)),
        args=with_run_options(command, rest),
        prog=f"dpr {command}",
        as_positional=False,
        exit_on_error=False,
        allow_abbrev=False,
    )


def arguments_to_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command that has begun to train, without ``--ckpt_path none``, which would begin it anew."""
    remaining: list[str] = []
    for argument in arguments:
        if argument == "none" and remaining[-1:] == ["--ckpt_path"]:
            remaining.pop()
        elif argument != "--ckpt_path=none":
            remaining.append(argument)
    return remaining


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dpr``; returns 0 or the exit code of the command.

    An error is one message on standard error, and the exit code 2 where the user can correct it, else 1.
    """
    _print_any_character()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        os.environ[DEBUG] = "1"
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    try:
        result = run(arguments)
    except TryAgain as again:
        print(f"dpr {arguments[0]}: {again}", file=sys.stderr)
        sys.stderr.flush()
        if again.alone:
            # A new process, since the GPU's memory is freed only when this one ends.
            os.execv(sys.executable, [sys.executable, "-m", "dpr_lightning.cli.main", *arguments_to_resume(arguments)])
        # At once: an orderly exit would wait for the other ranks, which wait for the gradients of this one.
        os._exit(REQUEUE)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        from dpr_lightning.cli.faults import explain

        return explain(arguments, error)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
