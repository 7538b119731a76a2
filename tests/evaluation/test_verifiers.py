import importlib
import sys

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation import verifiers
from dpr_lightning.evaluation.verifiers import last_number, load_verifier


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Answer: 42", 1.0),
        ("2+2=4\nAnswer:  42 \n", 1.0),
        ("Answer: 41\nAnswer: 42", 1.0),
        ("Answer: 42\nAnswer: 41", 0.0),
        ("42", 0.0),
        ("Answer: 421", 0.0),
        ("Answer: 42 apples", 0.0),
        ("Answer:", 0.0),
        ("", 0.0),
    ],
)
def test_answer_reads_what_follows_the_last_marker(completion, expected):
    assert load_verifier("answer")("", completion, {"answer": "42"}) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 - 5 = 7", 7.0),
        ("the total is 1,234,567.50 dollars", 1234567.5),
        ("5-3", 3.0),
        ("x=-56", -56.0),
        ("so 18\n#### 72", 72.0),
        ("Answer: 3\nas said before, 4 steps", 4.0),
        ("#### 10\n(from 3 steps) #### 11.", 11.0),
        ("$1,000", 1000.0),
        (".5", 0.5),
        ("nothing", None),
        ("1 #### ", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_numeric_compares_values_not_text():
    numeric = load_verifier("numeric")
    assert numeric("", "so it is 1,234.0", {"answer": "steps\n#### 1234"}) == 1.0
    assert numeric("", "so it is 1,235", {"answer": "1234"}) == 0.0
    assert numeric("", "none", {"answer": "0"}) == 0.0
    with pytest.raises(InputError, match="holds no number"):
        numeric("", "3", {"answer": "three"})


def test_exact_match_prefers_the_whole_completion():
    exact = load_verifier("exact_match")
    assert exact("", " jump jump \n", {"completion": "jump jump", "answer": "jump"}) == 1.0
    assert exact("", "jump", {"completion": "jump jump", "answer": "jump"}) == 0.0
    assert exact("", "jump", {"answer": "jump"}) == 1.0


def test_reasoning_gym_gives_no_partial_credit():
    gym = pytest.importorskip("reasoning_gym")
    item = gym.create_dataset("countdown", size=1, seed=0)[0]
    metadata = {**item["metadata"], "answer": item["answer"], "question": item["question"]}
    verify = load_verifier("reasoning_gym")
    numbers = item["metadata"]["numbers"]
    wrong = " + ".join(map(str, numbers))
    assert 0.0 < gym.create_dataset("countdown", size=1, seed=0).score_answer(wrong, item) < 1.0
    assert verify("", f"Answer: {wrong}", metadata) == 0.0
    assert verify("", f"Answer: {item['metadata']['expression']}", metadata) == 1.0
    assert verify("", item["metadata"]["expression"], metadata) == 0.0


def test_reasoning_gym_names_an_unknown_task():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError, match="chain_sum"):
        load_verifier("reasoning_gym")("", "Answer: 1", {"answer": "1", "source_dataset": "chain_sums"})


def test_missing_reasoning_gym_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"dpr-lightning\[demo\]"):
        verifiers.import_reasoning_gym()


@pytest.mark.parametrize("name", ["exact_match", "answer", "numeric", "reasoning_gym"])
def test_a_missing_field_is_named(name):
    with pytest.raises(InputError, match="'answer'"):
        load_verifier(name)("", "Answer: 1", {"solution": "1"})


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_verifiers.py").write_text(
        "def shortness(prompt, completion, metadata):\n    return 1 / len(completion)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert load_verifier("my_verifiers:shortness")("", "ab", {}) == 0.5
    with pytest.raises(InputError, match="shortness"):
        load_verifier("my_verifiers:shortnes")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("answers", "'answer'"),
        ("numerical", "'numeric'"),
        ("no_such_module:f", "does not import"),
        ("", "Known: answer"),
    ],
)
def test_unknown_verifiers(name, match):
    with pytest.raises(InputError, match=match):
        load_verifier(name)
