"""``dpr recipes``, and the names ``recipe:FOLDER/NAME`` of packaged configs."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from dpr_lightning.cli.option_parser import OptionParser
from dpr_lightning.errors import InputError

PREFIX = "recipe:"
WIDTH = 110
MODELS = "Models by hub id: fine-tuning (sft, sft_lora), then Dense-Path REINFORCE (dpr)"
GROUPS = {
    "8b": "An 8B model on 8 GPUs",
    "smollm2": "The example of `dpr smollm2`",
    "toy": "The example of `dpr quickstart`",
    "compare": "Comparisons, for `dpr compare`",
    "strategy": "Strategies, to add to another recipe",
}
"""Titles by folder; all other folders are of models."""


def recipes(arguments: Sequence[str]) -> None:
    """List the packaged configs by group, each with the first sentence of its comment.

    Raises:
        InputError: an option is wrong.
    """
    OptionParser("recipes", "List the packaged configs: dpr fit --config recipe:NAME").parse_args(arguments)
    packaged = list(_packaged(files("dpr_lightning.configs")))
    width = max(len(name) for name, _ in packaged)
    groups: dict[str, list[str]] = {title: [] for title in (MODELS, *GROUPS.values())}
    for name, file in packaged:
        title = GROUPS.get(name.partition("/")[0], MODELS)
        groups[title].append(_line(f"{PREFIX}{name:<{width}} ", _first_sentence(file)))
    print("\n\n".join("\n".join([f"{title}:", *lines]) for title, lines in groups.items() if lines))


def _line(begin: str, text: str) -> str:
    """A line of at most ``WIDTH`` characters: ``begin``, and as many words of ``text`` as fit."""
    return f"{begin} {textwrap.shorten(text, WIDTH - len(begin) - 1, placeholder=' …')}"


def _first_sentence(file: Traversable) -> str:
    """The first sentence of a config's comment."""
    comment = itertools.takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment if not line.startswith("#  "))
    return re.split(r"[.]\s|: ", text, maxsplit=1)[0].removesuffix(".")


def with_recipe_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the paths of packaged configs for ``--config recipe:NAME``.

    Raises:
        InputError: there is no such recipe.
    """
    result: list[str] = []
    for argument in arguments:
        before, separator, name = argument.partition(PREFIX)
        is_config = before == "--config=" or (before == "" and result[-1:] == ["--config"])
        result.append(before + _path(name) if separator and is_config else argument)
    return result


def _path(name: str) -> str:
    packaged = dict(_packaged(files("dpr_lightning.configs")))
    file = packaged.get(name.removesuffix(".yaml"))
    if file is None:
        near = get_close_matches(name, packaged, n=1)
        meant = f" Did you mean {PREFIX}{near[0]}?" if near else ""
        raise InputError(f"There is no recipe {name!r}.{meant} `dpr recipes` lists them.")
    if not isinstance(file, Path):
        raise InputError(f"{PREFIX}{name} is in an archive. Install this package unpacked, as pip does.")
    return str(file)


def _packaged(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """All configs by their name, in alphabetical order."""
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir() and not entry.name.startswith("_"):
            yield from _packaged(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield f"{prefix}{entry.name.removesuffix('.yaml')}", entry
