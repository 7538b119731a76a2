"""The last step of commands that write a config: apply the changes, print it, run it as `dpr fit` does."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.syntax import Syntax

from dpr_lightning.cli.option_parser import read_configs
from dpr_lightning.lightning_cli.dpr_cli import parse_lightning, run_lightning
from dpr_lightning.lightning_cli.saved_policies import print_saved
from dpr_lightning.reports.console import console
from dpr_lightning.workflow import Config, apply_setting, merge, read_settings, write_config


def finish_config(config: Config, lines: Sequence[str], options: Namespace, path: Path, command: str) -> Path:
    """Apply ``--config`` and ``--set``, write the config and print it.

    Args:
        config: of `dpr fit`.
        lines: on the choices in it.
        options: parsed, with those of :meth:`OptionParser.add_config_options`.
        path: of the file; one that is there is replaced.
        command: that writes it.

    Raises:
        InputError: a config or an option is wrong.
    """
    for overlay in read_configs(options.configs):
        config = merge(config, overlay)
    for option, value in read_settings(options.settings).items():
        apply_setting(config, option, value)
    with TemporaryDirectory() as folder:  # a config with a mistake replaces none
        draft = Path(folder) / path.name
        write_config(config, draft, command)
        parse_lightning(["fit", "--config", str(draft)])
    write_config(config, path, f"Written by: {command}\nRuns as: dpr fit --config {path}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{path}:", highlight=False, markup=False)
    console.print(Syntax(path.read_text(encoding="utf-8"), "yaml", background_color="default"), soft_wrap=True)
    return path


def fit_config(path: Path, ckpt_path: str | None) -> Any:
    """Run `dpr fit` with a config, and with its option ``--ckpt_path`` unless that is None."""
    resume = [] if ckpt_path is None else ["--ckpt_path", ckpt_path]
    ended = run_lightning(["fit", "--config", str(path), *resume])
    print_saved(ended.trainer, ended.datamodule)
    return ended
