"""The last step of commands that write a config: apply the changes, print it, run it as `dpr fit` does."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.syntax import Syntax

from dpr_lightning.cli.command_options import with_command_options
from dpr_lightning.cli.option_parser import read_configs
from dpr_lightning.errors import InputError
from dpr_lightning.lightning_cli.dpr_cli import ConfigDraft, parse_lightning, run_lightning
from dpr_lightning.lightning_cli.saved_policies import print_saved
from dpr_lightning.reports.console import console
from dpr_lightning.workflow import Config, apply_setting, merge, read_settings, write_config


def run_config(config: Config, lines: Sequence[str], options: Namespace, path: Path, command: str) -> Any:
    """Apply ``--config`` and ``--set``, and run `dpr fit` with the config, or write it alone with ``--write_only``.

    It is written and printed once every check before training has passed: a run that is refused replaces none.

    Args:
        config: of `dpr fit`.
        lines: on the choices in it.
        options: parsed, with those of :meth:`OptionParser.add_config_options` and ``--ckpt_path``.
        path: of the file; one that is there is replaced.
        command: that writes it.

    Raises:
        InputError: a config or an option is wrong.
    """
    if options.write_only:
        return write_checked(config, lines, options, path, command)
    resume = [] if options.ckpt_path is None else ["--ckpt_path", options.ckpt_path]
    try:
        with _drafted(config, lines, options, path, command) as draft:
            ended = run_lightning(["fit", "--config", str(path), *resume], draft)
    except InputError as error:
        raise InputError(with_command_options(str(error), vars(options))) from error
    print_saved(ended.trainer, ended.datamodule)
    return ended


def write_checked(config: Config, lines: Sequence[str], options: Namespace, path: Path, command: str) -> None:
    """The same without running it: the config is written where `dpr fit` can parse it."""
    with _drafted(config, lines, options, path, command) as draft:
        parse_lightning(["fit", "--config", str(draft.path)])
        draft.save()


@contextmanager
def _drafted(
    config: Config, lines: Sequence[str], options: Namespace, path: Path, command: str
) -> Iterator[ConfigDraft]:
    for overlay in read_configs(options.configs):
        config = merge(config, overlay)
    for option, value in read_settings(options.settings).items():
        apply_setting(config, option, value)

    def save() -> None:
        write_config(config, path, f"Written by: {command}\nRuns as: dpr fit --config {path}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{path}:", highlight=False, markup=False)
        console.print(Syntax(path.read_text(encoding="utf-8"), "yaml", background_color="default"), soft_wrap=True)

    with TemporaryDirectory() as folder:
        draft = ConfigDraft(Path(folder) / path.name, path, save)
        write_config(config, draft.path, command)
        yield draft
