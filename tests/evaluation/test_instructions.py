"""Instructions that a program can check, by lm-eval's checks."""

import json

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import load_verifier

ROW = {
    "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_bullet_lists"],
    "kwargs": [{}, {"num_bullets": 2}],
}


@pytest.mark.parametrize(
    ("completion", "score"),
    [("* one\n* two", 1.0), ("* one, or more\n* two", 0.0), ("* one", 0.0), ("", 0.0)],
)
def test_every_instruction_has_to_be_followed(completion: str, score: float) -> None:
    verifier = load_verifier("instructions")
    assert verifier("List two things.", completion, ROW) == score
    assert verifier("List two things.", completion, ROW | {"kwargs": json.dumps(ROW["kwargs"])}) == score


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]}, "takes ..num_words"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": "not json"}, "`kwargs` is str .*no JSON"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"colour": 1}]}, "takes .. in"),
        ({}, "needs the field 'instruction_id_list'"),
        ({"instruction_id_list": [], "kwargs": []}, "must be a list of texts"),
        ({"instruction_id_list": ["a"], "kwargs": None}, "`kwargs` is null"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "one mapping for each"),
        ({"instruction_id_list": ["punctuation:no_point"], "kwargs": [{}]}, "No check is called punctuation:no_point"),
    ],
)
def test_a_row_that_does_not_say_what_to_check(row: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_verifier("instructions")("", "text", row)
