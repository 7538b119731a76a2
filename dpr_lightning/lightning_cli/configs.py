"""Check configs before they are parsed, for what YAML accepts silently, and report the file and line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from dpr_lightning.errors import InputError


def check_configs(arguments: Sequence[str]) -> None:
    """Check every config that a command line names.

    Raises:
        InputError: a config is empty, is no YAML or no mapping, repeats a key, or names a Python object; with its file
            and line.
    """
    for path in config_files(arguments):
        if path.is_file():
            _check(path)


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The config files that a command line names."""
    return list(_named(arguments))


def _named(arguments: Sequence[str]) -> Iterator[Path]:
    for index, argument in enumerate(arguments):
        if argument in ("--config", "-c") and index + 1 < len(arguments):
            yield Path(arguments[index + 1])
        elif argument.startswith("--config="):
            yield Path(argument.removeprefix("--config="))


def _check(path: Path) -> None:
    try:
        top = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"The config {path} is not UTF-8 text (byte {error.start + 1}).") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise InputError(f"The config {path}{line} is no YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"The config {path} is no YAML: {error}.") from error
    if top is None:
        raise InputError(
            f"The config {path} is empty. The packaged ones, such as configs/toy/sft.yaml, are complete ones."
        )
    if not isinstance(top, yaml.MappingNode):
        raise InputError(f"The config {path} is a {top.id}; it has to be a mapping, such as `model:` and its options.")
    _check_node(path, top, set())


def _check_node(path: Path, node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if node.tag.startswith("tag:yaml.org,2002:python"):
        raise InputError(
            f"{path}:{node.start_mark.line + 1} names a Python object ({node.tag.rpartition('2002:')[2]}). Configs "
            "hold plain values; a class is named by `class_path` and `init_args`."
        )
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _check_node(path, inner, seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                raise InputError(
                    f"{path}:{line} repeats {name!r} of line {lines[name]}. YAML would silently take the later value: "
                    "remove one of them."
                )
            lines[name] = line
            _check_node(path, value, seen)
