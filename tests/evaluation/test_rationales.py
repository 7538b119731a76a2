import re

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation import rationales


def _columns_hold(columns: str) -> None:
    for column in columns.split(","):
        left, right = column.split("=")
        assert re.fullmatch(r"[0-9*+-]+", left)
        assert eval(left) == int(right), column


@pytest.mark.parametrize("first", [0, 5, 9, 10, 57, 99, 144, 999])
@pytest.mark.parametrize("second", [0, 1, 87, 90, 905])
def test_columns_are_true_and_spell_the_result(first, second):
    total = rationales.sum_columns(first, second)
    _columns_hold(total)
    digits = [column.split("=")[1] for column in total.split(",")]
    assert int(digits[-1] + "".join(digit[-1] for digit in reversed(digits[:-1]))) == first + second

    larger, smaller = max(first, second), min(first, second)
    difference = rationales.difference_columns(larger, smaller)
    _columns_hold(difference)
    assert int("".join(reversed([column.split("=")[1] for column in difference.split(",")]))) == larger - smaller
    assert all(0 <= int(column.split("=")[1]) <= 9 for column in difference.split(","))

    for digit in (0, 1, 7, 9):
        product = rationales.product_columns(first, digit)
        _columns_hold(product)
        digits = [column.split("=")[1] for column in product.split(",")]
        assert int(digits[-1] + "".join(one[-1] for one in reversed(digits[:-1]))) == first * digit


@pytest.mark.parametrize("total", [-57, -3, 0, 8, 57])
@pytest.mark.parametrize("term", [-90, -57, -1, 0, 57, 83])
def test_an_addition_step_ends_in_the_sum_whatever_the_signs(total, term):
    digits = rationales.addition_step(total, term, "digits")
    _columns_hold(digits.partition(":")[2].partition(">")[0])
    assert int(digits.partition(">")[2]) == total + term
    assert rationales.addition_step(total, term, "running") == f"{total}{term:+d}={total + term}"


def test_the_steps_read_as_documented():
    assert rationales.addition_step(57, 87, "digits") == "57+87:7+7=14,5+8+1=14>144"
    assert rationales.addition_step(17, -73, "digits") == "17-73:13-7=6,7-1-1=5>-56"
    assert rationales.products_rationale({"expression": "57 * 80"}, "digits") == "57*80:7*8=56,5*8+5=45>4560"
    assert rationales.products_rationale({"expression": "57 * 0"}, "running") == "57*0=0"
    assert rationales.spell_backward_rationale({"word": "sun"}, "digits") == "s u n\nn u s"
    counted = {"target_letter": "n", "span": ["Names", "and", "then"]}
    assert rationales.letter_counting_rationale(counted, "digits") == "Names+1=1 and+1=2 then+1=3"


def test_signed_terms():
    assert rationales.signed_terms("42 - 25 + -3 - -4") == [42, -25, -3, 4]
    with pytest.raises(InputError, match="12 \\+ 34"):
        rationales.signed_terms("42 * 3")
