"""Worked solutions of the procedural tasks, generated for their demonstrations.

Each is compact and regular, so that a model of a million parameters with one token a character can learn it: arithmetic
goes column by column from the ones, every carry or borrow is written out, and no step needs more than two digits at a
time. ``57+87:7+7=14,5+8+1=14>144`` reads: 7+7 is 14, so carry 1; 5+8+1 is 14; together 144.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Literal, get_args

from dpr_lightning.errors import InputError

Detail = Literal["digits", "running"]
DETAILS: tuple[str, ...] = get_args(Detail)


def sum_columns(first: int, second: int) -> str:
    """Columns of first + second (both ≥ 0), from the ones: ``7+7=14,5+8+1=14``."""
    columns, carry = [], 0
    for a, b in zip_longest(_digits(first), _digits(second), fillvalue=0):
        total = a + b + carry
        columns.append(f"{a}+{b}{'+1' if carry else ''}={total}")
        carry = total // 10
    return ",".join(columns)


def difference_columns(larger: int, smaller: int) -> str:
    """Columns of larger − smaller ≥ 0, from the ones; a top digit of 10 or more has borrowed: ``12-5=7,4-2-1=1``."""
    columns, borrow = [], 0
    for a, b in zip_longest(_digits(larger), _digits(smaller), fillvalue=0):
        top = a if a - b - borrow >= 0 else a + 10
        columns.append(f"{top}-{b}{'-1' if borrow else ''}={top - b - borrow}")
        borrow = int(top > a)
    return ",".join(columns)


def product_columns(number: int, digit: int) -> str:
    """Columns of number · digit (number ≥ 0, 0 ≤ digit ≤ 9), from the ones, with carries: ``7*7=49,5*7+4=39``."""
    columns, carry = [], 0
    for a in _digits(number):
        total = a * digit + carry
        columns.append(f"{a}*{digit}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return ",".join(columns)


def addition_step(total: int, term: int, detail: Detail) -> str:
    """One line from ``total`` to ``total + term``, both of either sign.

    Equal signs add the magnitudes; unequal ones subtract the smaller magnitude from the larger, whose sign stays.
    """
    result = total + term
    if detail == "running":
        return f"{total}{term:+d}={result}"
    small, large = sorted((abs(total), abs(term)))
    same_sign = (total >= 0) == (term >= 0)
    columns = sum_columns(abs(total), abs(term)) if same_sign else difference_columns(large, small)
    return f"{total}{term:+d}:{columns}>{result}"


def chain_sum_rationale(metadata: Mapping[str, Any], detail: Detail) -> str:
    """Running total of an expression such as ``42 - 25 - 73``, a line a term."""
    lines, total = [], 0
    for index, term in enumerate(signed_terms(metadata["expression"])):
        if index:
            lines.append(addition_step(total, term, detail))
        total += term
    return "\n".join(lines)


def products_rationale(metadata: Mapping[str, Any], detail: Detail) -> str:
    """Long multiplication of an expression such as ``57 * 87``: a partial product a digit, then their running sum.

    Magnitudes are multiplied; the sign is left to the answer.
    """
    factors = [abs(int(factor)) for factor in metadata["expression"].split(" * ")]
    lines, product = [], factors[0]
    for factor in factors[1:]:
        total: int | None = None
        for power, digit in enumerate(_digits(factor)):
            if digit == 0 and factor > 0:
                continue
            part = product * digit * 10**power
            columns = "" if detail == "running" else f":{product_columns(product, digit)}"
            lines.append(f"{product}*{digit * 10**power}{columns}{'=' if detail == 'running' else '>'}{part}")
            if total is not None:
                lines.append(addition_step(total, part, detail))
            total = part if total is None else total + part
        product = total or 0
    return "\n".join(lines)


def spell_backward_rationale(metadata: Mapping[str, Any], detail: Detail) -> str:
    """The letters apart, then in reverse; ``running`` gives the reverse alone."""
    word = str(metadata["word"])
    backward = " ".join(reversed(word))
    return backward if detail == "running" else f"{' '.join(word)}\n{backward}"


def letter_counting_rationale(metadata: Mapping[str, Any], detail: Detail) -> str:
    """Word by word, the count and the total so far: ``names+1=1``; ``running`` gives the counts alone."""
    target, total, steps = metadata["target_letter"], 0, []
    for word in metadata["span"]:
        count = str(word).lower().count(target)
        total += count
        steps.append(f"{word}+{count}" if detail == "running" else f"{word}+{count}={total}")
    return " ".join(steps)


def signed_terms(expression: str) -> list[int]:
    """The terms of ``42 - 25 + -3`` with their signs: [42, −25, −3].

    Raises:
        InputError: a term is not a whole number.
    """
    head, *rest = expression.split(" ")
    try:
        signs = [{"+": 1, "-": -1}[operator] for operator in rest[::2]]
        return [int(head), *(sign * int(term) for sign, term in zip(signs, rest[1::2], strict=True))]
    except (KeyError, ValueError) as error:
        raise InputError(f"{expression!r} is not a sum of whole numbers, written with spaces: 12 + 34 - 5.") from error


def _digits(number: int) -> list[int]:
    """Decimal digits from the ones up; 0 has one."""
    return [int(digit) for digit in reversed(str(number))]
