"""Changes of a config by dotted options and by further config files, and its file."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_file

Config = dict[str, Any]
_CLASS = "class_path"
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""Numbers such as ``1e-4``, which YAML 1.1 reads as text."""


def read_settings(settings: Iterable[str]) -> dict[str, Any]:
    """The dotted options and values of ``--set OPTION=VALUE``; values are YAML.

    Raises:
        InputError: there is no ``=``, or the value is no YAML.
    """
    result: dict[str, Any] = {}
    for setting in settings:
        option, separator, text = setting.partition("=")
        if not separator or not option:
            raise InputError(f"`--set {setting}`: write OPTION=VALUE, such as trainer.max_steps=100.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"`--set {setting}`: the value is no YAML. Quote texts with special letters.") from error
        result[option] = float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value
    return result


def apply_setting(config: Config, option: str, value: Any) -> None:
    """Set a dotted option of a config; ``init_args`` may be left out.

    Args:
        config: is changed.
        option: such as ``model.optimizer.lr``, for ``model.init_args.optimizer.init_args.lr``.
        value: plain data.

    Raises:
        InputError: the option lies below a value that has no options.
    """
    *sections, key = option.split(".")
    target = config
    for index, section in enumerate(sections):
        target = _options_of(target, section)
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"`{option}`: `{'.'.join(sections[: index + 1])}` is {inner!r}, which has no options.")
        target = inner
    _options_of(target, key)[key] = value


def merge(config: Config, overlay: Mapping[str, Any]) -> Config:
    """A config with the options of another, which take precedence; another class brings its own options."""
    result = dict(config)
    for key, value in overlay.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            other_class = _CLASS in value and value[_CLASS] != before.get(_CLASS)
            result[key] = value if other_class else merge(before, value)
        else:
            result[key] = value
    return result


def write_config(config: Config, path: Path, heading: str) -> None:
    """Write a config to a file, with a comment in its first lines."""
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    with whole_file(path) as stream:
        stream.write(comment + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=118))


def _options_of(section: Config, key: str) -> Config:
    """The mapping in which an option of a section is: ``init_args``, where the section names a class."""
    if _CLASS in section and key not in (_CLASS, "init_args"):
        options: Config = section.setdefault("init_args", {})
        return options
    return section
