"""The command ``dpr``."""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

from dpr_lightning.cli.command_table import WORKFLOW, check_command, command_function, overview
from dpr_lightning.cli.help_pages import FLAGS, help_page, without_topic
from dpr_lightning.cli.libraries import settle_libraries
from dpr_lightning.cli.recipes_command import with_recipe_paths
from dpr_lightning.cli.run_options import with_configs_of_run, with_run_options
from dpr_lightning.errors import DEBUG, REQUEUE, InputError, TryAgain
from dpr_lightning.lightning_cli import LIGHTNING_COMMANDS


def _print_any_character() -> None:
    """Print a character that the encoding of the terminal or pipe lacks, such as β, as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str]) -> Any:
    """Run one command; errors come as exceptions."""
    command, *rest = arguments
    if command == "recipes" or (command in WORKFLOW and {*FLAGS} & {*rest}):
        return command_function(command)(rest)
    from dpr_lightning.lightning_cli.configs import check_configs, config_files

    rest = with_recipe_paths(rest)
    check_configs(rest)
    if command in WORKFLOW:  # it imports the libraries once it has parsed its options
        return command_function(command)(rest)
    rest = with_run_options(command, rest)
    settle_libraries()
    if command in LIGHTNING_COMMANDS:
        from dpr_lightning.lightning_cli.dpr_cli import run_lightning

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
    from jsonargparse import auto_cli

    from dpr_lightning.lightning_cli.path_checks import guarded

    return auto_cli(
        guarded(command_function(command), config_files(rest)),
        args=rest,
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
        print(overview())
        return 0
    try:
        check_command(arguments[0])
        page = help_page(arguments)
    except InputError as error:
        print(f"dpr {arguments[0]}: {error}", file=sys.stderr)
        return 2
    if page is not None:
        print(page)
        return 0
    try:
        result = run(without_topic(arguments))
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
        if isinstance(error, InputError):  # perhaps of an option, before the libraries that `explain` needs
            print(f"dpr {arguments[0]}: {error}", file=sys.stderr)
            return 2
        from dpr_lightning.cli.faults import explain

        return explain(arguments, error)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
