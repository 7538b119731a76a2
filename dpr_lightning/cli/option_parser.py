"""Options of the commands that write a config and run it; their `--help` imports no library."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dpr_lightning.errors import InputError


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are an InputError.

    Args:
        command: name of the command.
        description: printed by ``--help``.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"dpr {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found.

        Raises:
            InputError: always.
        """
        from dpr_lightning.cli.parse_errors import plainly

        options = (option.removeprefix("--") for action in self._actions for option in action.option_strings)
        sentence = plainly(message, options)
        raise InputError(sentence if sentence != message else f"{message}. `{self.prog} --help` lists the options.")

    def add_config_options(self) -> None:
        """Add the options that change the config which the command writes."""
        group = self.add_argument_group("the config that is run")
        group.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="OPTION=VALUE",
            dest="settings",
            help="any option of `dpr fit`, such as model.optimizer.lr=1e-4 or trainer.devices=2; may be repeated",
        )
        group.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            dest="configs",
            help="a config whose options take precedence, such as recipe:strategy/zero2; may be repeated",
        )
        group.add_argument("--write_only", action="store_true", help="write the config, and do not run it")

    def add_resume_option(self) -> None:
        """Add the option of `dpr fit` that says where the run begins."""
        self.add_argument(
            "--ckpt_path",
            metavar="none",
            help="`none` begins anew although the folder has checkpoints (default: resume from the newest)",
        )


def rows(text: str) -> Any:
    """A path, or a YAML list of paths."""
    return _yaml(text) if text.lstrip().startswith("[") else text


def columns(text: str) -> dict[str, str]:
    """The files' names of our columns: ``prompt=question,completion=answer``, or YAML.

    Raises:
        ArgumentTypeError: it is neither.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    value = _yaml(text) if text.lstrip().startswith("{") else {name: column for name, _, column in pairs}
    if not isinstance(value, dict) or not all(isinstance(part, str) and part for part in (*value, *value.values())):
        raise argparse.ArgumentTypeError(f"found {text!r}; write prompt=question,completion=answer")
    return value


def read_configs(paths: Sequence[str]) -> list[Any]:
    """The content of config files, which were checked before.

    Raises:
        InputError: there is no such file.
    """
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"`--config`: there is no file {path}. `dpr recipes` lists those of this package.")
    return [_yaml(Path(path).read_text(encoding="utf-8")) for path in paths]


def _yaml(text: str) -> Any:
    import yaml  # `--help` does without

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} is no YAML.") from error
