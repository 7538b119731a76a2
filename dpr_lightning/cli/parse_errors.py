"""Turn a parser's report over many lines into one sentence: the option, its value, and what is allowed."""

import difflib
import importlib
import inspect
import pkgutil
import pydoc
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path

from jsonargparse import ArgumentParser

from dpr_lightning.lightning_cli.origins import frames_of

_NOISE = re.compile(
    r"(- )?Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value( type)?: .*"
    r"|(- )?Expected a <class 'NoneType'>|(- )?Expected a path but .* either not accessible or invalid"
    r"|(- )?Not a valid subclass of .*|Subclass types expect one of:|- a (class path|dict) .*"
)
_KEY = re.compile(r'(?:- )?Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
_CLASS = re.compile(r"(?:- )?Problem with given class_path '(?P<name>[^']+)':\s*(?P<rest>.*)")
_CALLABLE = re.compile(r"(?:- )?Type \S*Callable\[.*\] expects a function or a callable class:\s*(?P<rest>.*)")
_PATH = re.compile(r"(?:- )?Expected a dot import path string: (?P<name>.*)")
_OPTION = re.compile(r"[Oo]ption '(?P<option>[^']+)' is not accepted")
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<arguments>--.*)")
_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_LIST = re.compile(r"has to be list\. Got value: (?P<value>[^\[{]+)$")
_MODULE = re.compile(r"No module named '(?P<module>[^']+)'")
_INNER = re.compile(r"\.? Got value: Namespace\(class_path='(?P<name>[^']+)'.*")
_TYPES = re.compile(r"<class '(?:builtins\.)?([^']+)'>|typing\.|collections\.abc\.")
_LISTED = 12
"""Options of a class that are listed where none is spelt alike."""


def known_options(error: BaseException) -> list[str]:
    """The options of all parsers that a parser's error went through, without their dashes."""
    owners = (frame.f_locals.get("self") for frame in frames_of(error))
    actions = {id(action): action for owner in owners if isinstance(owner, ArgumentParser) for action in owner._actions}
    options = (option for action in actions.values() for option in action.option_strings)
    return sorted({option.removeprefix("--") for option in options if option.startswith("--")})


def plainly(message: str, options: Iterable[str] = ()) -> str:
    """Shorten jsonargparse's message about a value that fits none of several types, which lists each type's failure.

    Args:
        message: of its ``ArgumentError``, over many lines.
        options: of the command, from :func:`known_options`.

    Returns:
        One line, such as ``data.batch_size: has to be int; found four.`` Messages of another form stay as they are.
    """
    keys: list[str] = []
    reasons: list[str] = []
    owner = ""
    for line in filter(None, map(str.strip, message.splitlines())):
        rest = line
        while match := _KEY.match(rest) or _CLASS.match(rest) or _CALLABLE.match(rest):
            groups = match.groupdict()
            if "key" in groups:
                keys.append(groups["key"])
            elif not owner:
                owner = groups.get("name", "")
            rest = groups["rest"].strip()
        if match := _INNER.search(rest):
            owner, rest = match["name"], rest[: match.start()]
        if rest and not _NOISE.fullmatch(rest):
            reasons.append(rest.removeprefix("- "))
    if match := _UNKNOWN.search(message):
        return _unknown_option(match["arguments"], ".".join(keys), options)
    # The value is wrong, so that the parser also tried the option on a class that lacks it.
    reasons = [reason for reason in reasons if not ((lack := _OPTION.search(reason)) and lack["option"] in keys[1:])]
    values = re.findall(r"Given value: (.*)", message)
    if not keys or not (reasons or values):
        return message
    key, reason = ".".join(keys), _TYPES.sub(r"\1", _joined(reasons))
    if classless := next((match["name"] for text in reasons if (match := _PATH.fullmatch(text))), None):
        return f"{key}: {_no_options(key, classless, message) or _no_path(classless)}"
    text = f"{key}: {reason or 'has another type'}".replace(" or NoneType", "").removesuffix(".")
    if values and "Got value" not in text and len(values[0]) < 80 and "not accepted" not in text:
        text += f"; found {values[0]}"
    return f"{text}.{_meant(text, owner)}"


_EXAMPLE = "lightning.pytorch.loggers.CSVLogger"


def _no_path(name: str) -> str:
    """What to write instead of a name that is no import path: this option takes no short names of verifiers."""
    from dpr_lightning.data.ground_truth import verifier_name  # they import torch
    from dpr_lightning.evaluation.verifiers import VERIFIERS

    module, colon, function = name.partition(":")
    if colon:
        return f"{name!r} is no import path. Write {module}.{function}."
    if name in VERIFIERS:
        function = verifier_name(VERIFIERS[name])
        return f"{name!r} is no import path. Write {VERIFIERS[name].__module__}.{function}."
    return f"there is no class {name!r}. A class is named by its import path, such as {_EXAMPLE}."


def _no_options(key: str, value: str, message: str) -> str | None:
    """What to write instead of a value where a dataclass takes options; None where another class is expected."""
    *_, subtypes = re.findall(r"Subtypes: (.*)", message) or [""]
    kinds = [kind for name in re.findall(r"<class '([\w.]+)'>", subtypes) if is_dataclass(kind := pydoc.locate(name))]
    if not kinds:
        return None
    return f"it has options, such as {key}.{fields(kinds[0])[0].name}; found {value}."


def _joined(reasons: list[str]) -> str:
    """Join reasons into one text: expected types as alternatives, unless there are other reasons."""
    types = [reason.removeprefix("Expected a ") for reason in reasons if reason.startswith("Expected a ")]
    other_reasons = [reason for reason in reasons if not reason.startswith("Expected a ")]
    expected = [f"has to be {' or '.join(dict.fromkeys(types))}"] if types and not other_reasons else []
    return "; ".join(dict.fromkeys([*expected, *other_reasons]))


def _unknown_option(arguments: str, key: str, options: Iterable[str]) -> str:
    """A sentence that names the options that do not exist, and for each the one with the nearest spelling."""
    words = re.findall(r"(?:^| )--([\w.+-]+)", arguments)
    known = list(options)
    parts = []
    for word in words:
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or _near_prefix(word, known)
        full = [name if not key or name.startswith(f"{key}.") else f"{key}.{name}" for name in (word, *near)]
        meant = f" Did you mean --{full[1]}?" if near else " `--help` lists them."
        parts.append(f"There is no option --{full[0]}.{meant}")
    return " ".join(parts) or f"unrecognized arguments: {arguments}"


def _near_prefix(word: str, known: list[str]) -> list[str]:
    """For an option inside another one (``modle.policy.source``), the outer one that was meant."""
    outer, _, inner = word.partition(".")
    near = difflib.get_close_matches(outer, known, n=1, cutoff=0.6)
    return [f"{near[0]}.{inner}"] if near and inner else []


def _meant(text: str, owner: str) -> str:
    """The option, class or folder that was meant by the one that does not exist."""
    if match := _MODULE.search(text):
        file = Path(*match["module"].split("."))
        if file.with_suffix(".py").is_file() or file.is_dir():
            return " It lies in this folder, where Python does not look: put `PYTHONPATH=.` before the command."
        return " If it is code of yours, put PYTHONPATH=FOLDER before the command, FOLDER being where it lies."
    if match := _LIST.search(text):
        return f" A list is written in brackets: '[{match['value']}]'."
    if match := _OPTION.search(text):
        known, wrong = _parameters(owner), match["option"]
        near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
        if not near and known:
            return f" {owner.rpartition('.')[2]} takes {', '.join(known[:_LISTED])}{' …' * (len(known) > _LISTED)}."
    elif match := _ATTRIBUTE.search(text):
        near = difflib.get_close_matches(match["name"], dir(importlib.import_module(match["module"])), n=1, cutoff=0.6)
    else:
        return ""
    return f" Did you mean {near[0]!r}?" if near else ""


def _parameters(path: str) -> list[str]:
    """Names of a class's options."""
    module, _, name = path.rpartition(".")
    try:
        signature = inspect.signature(pkgutil.resolve_name(f"{module}:{name}"))
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return [parameter for parameter in signature.parameters if parameter not in ("self", "params")]
