"""A parser's report over many lines, in one sentence: which option, what was found, what is allowed."""

import difflib
import importlib
import inspect
import re
from typing import Any

_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*|Given value: .*"
    r"|(- )?Expected a <class 'NoneType'>"
)
_KEY = re.compile(r'(?:- )?Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
_CLASS = re.compile(r"(?:- )?Problem with given class_path '(?P<name>[^']+)':\s*(?P<rest>.*)")
_OPTION = re.compile(r"Option '(?P<option>[^']+)' is not accepted")
_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_TYPES = re.compile(r"<class '(?:builtins\.)?([^']+)'>|typing\.")


def plainly(message: str) -> str:
    """What jsonargparse says of a value that fits none of several types, without what it says of those.

    Args:
        message: of its ``ArgumentError``, over many lines.

    Returns:
        One line, such as ``data.batch_size: has to be int; found four.`` Messages of another form stay as they are.
    """
    keys: list[str] = []
    reasons: list[str] = []
    owner = ""
    for line in filter(None, map(str.strip, message.splitlines())):
        rest = line
        while found := _KEY.match(rest) or _CLASS.match(rest):
            if "key" in found.groupdict():
                keys.append(found["key"])
            else:
                owner = found["name"]
            rest = found["rest"].strip()
        if rest and not _NOISE.fullmatch(rest):
            reasons.append(rest.removeprefix("- "))
    if not keys or not reasons:
        return message
    values = re.findall(r"Given value: (.*)", message)
    reason = _TYPES.sub(r"\1", _joined(reasons))
    told = f"{'.'.join(keys)}: {reason}"
    if values and "Got value" not in told and len(values[0]) < 80 and "not accepted" not in told:
        told += f"; found {values[0]}"
    return f"{told}.{_meant(told, owner)}"


def _joined(reasons: list[str]) -> str:
    """Several types that were expected are alternatives; other reasons stand for themselves."""
    types = [reason.removeprefix("Expected a ") for reason in reasons if reason.startswith("Expected a ")]
    others = [reason for reason in reasons if not reason.startswith("Expected a ")]
    expected = [f"has to be {' or '.join(dict.fromkeys(types))}"] if types else []
    return "; ".join(dict.fromkeys([*expected, *others]))


def _meant(told: str, owner: str) -> str:
    """The option or class that is spelt most like the one that is not there."""
    if found := re.search(_OPTION.pattern, told, re.IGNORECASE):
        known, wrong = _parameters(owner, told), found["option"]
    elif found := _ATTRIBUTE.search(told):
        known, wrong = dir(importlib.import_module(found["module"])), found["name"]
    else:
        return ""
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _parameters(owner: str, told: str) -> list[str]:
    """What the class takes whose option is not accepted: an optimizer's is named in the value, the others' before."""
    inner = re.search(r"class_path='([^']+)'", told)
    module, _, name = (inner[1] if inner else owner).rpartition(".")
    try:
        made: Any = getattr(importlib.import_module(module), name)
        return list(inspect.signature(made).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
