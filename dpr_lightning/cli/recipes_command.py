"""``dpr recipes``, and the names ``recipe:FOLDER/NAME`` of packaged configs."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from dpr_lightning.cli.option_parser import OptionParser
from dpr_lightning.errors import InputError

PREFIX = "recipe:"


def recipes(arguments: Sequence[str]) -> None:
    """List the packaged configs, each with the first line of its comment.

    Raises:
        InputError: an option is wrong.
    """
    OptionParser("recipes", "List the packaged configs: dpr fit --config recipe:NAME").parse_args(arguments)
    packaged = dict(_packaged(files("dpr_lightning.configs")))
    width = max(map(len, packaged))
    for name, file in packaged.items():
        first = next(iter(file.read_text(encoding="utf-8").splitlines()), "")
        print(f"{PREFIX}{name:<{width}}  {first.removeprefix('#').strip()}")


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
