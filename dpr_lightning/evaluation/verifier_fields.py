"""Types of the columns that verifiers compare with: each converts a value, or raises a ValueError with the reason."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

ANSWER_MARKER = "Answer:"
_MINUS = "\N{MINUS SIGN}"
# A number with optional sign and thousands separators: 1,234.50; the sign must not be the minus of 5-3.
_NUMBER = re.compile(
    r"(?:(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)-?\.\d+)(?:[eE][-+]?\d{1,3}(?![\w.]))?"
)
_FORMULA = re.compile(r"(?:\d\s*/\s*\d[\d.,]*|(?:\\[dt]?frac|\\sqrt|\^)\S*)\W*$")
"""The end of a text whose value is not its last number."""


def text(value: Any) -> str:
    """A text, outer space aside; whole numbers without a point, so that 3.0 is ``3``."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("an empty text matches nothing that counts as an answer")
        return value.strip()
    if isinstance(value, bool):
        raise ValueError("a truth value has no one spelling; write the text that is right")
    if isinstance(value, int | float | Decimal):
        if not math.isfinite(value):
            raise ValueError("it is no number")
        return str(int(value)) if value == int(value) else str(value)
    raise ValueError("it must be one text or number")


def final_text(value: Any) -> str:
    """The text that belongs behind ``Answer:``; of a ground truth with that marker or ``####``, the text after it."""
    result = _after_marker(text(value)).strip()
    if not result:
        raise ValueError("nothing follows its marker")
    return result


def number(value: Any) -> float:
    """A number, or the last one of a text; after ``####`` or ``Answer:`` only what follows counts."""
    if isinstance(value, int | float | Decimal) and math.isfinite(value) and not isinstance(value, bool):
        return float(value)
    end = _after_marker(text(value))
    result = last_number(end)
    if result is None:
        raise ValueError("it has no number; the verifier `answer` compares texts")
    if _FORMULA.search(end):
        raise ValueError(f"only its last number, {result:g}, would be compared. Write its value as a decimal number")
    return result


def texts(value: Any) -> list[str]:
    """A list of texts, at least one, or JSON of it."""
    entries = json_value(value)
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ValueError("it must be a list of texts")
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError("each of its entries must be a text")
    return list(entries)


def mappings(value: Any) -> list[dict[str, Any]]:
    """A list of objects, or JSON of it; null entries are empty objects, and so are null keys of them none."""
    entries = json_value(value)
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError("it must be a list of objects")
    if not all(entry is None or isinstance(entry, Mapping) for entry in entries):
        raise ValueError("each of its entries must be an object")
    return [{key: part for key, part in (entry or {}).items() if part is not None} for entry in entries]


def json_value(value: Any) -> Any:
    """The value of a JSON text; any other value unchanged."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"the text is no JSON ({error})") from error


def last_number(value: str) -> float | None:
    """The last number of a text, or of the part after its last ``####`` or ``Answer:``; None without one."""
    numbers = _NUMBER.findall(_after_marker(value).replace(_MINUS, "-"))
    return float(numbers[-1].replace(",", "")) if numbers else None


def _after_marker(value: str) -> str:
    marker = next((marker for marker in ("####", ANSWER_MARKER) if marker in value), "")
    return value.rpartition(marker)[2] if marker else value
