import importlib
import sys
from decimal import Decimal

import pytest

from dpr_lightning.data import PromptSet, ground_truth
from dpr_lightning.data.ground_truth import Requirements, check_ground_truth, needs, verifier_scores
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation import verifiers
from dpr_lightning.evaluation.verifier_fields import number
from dpr_lightning.evaluation.verifiers import last_number, load_verifier


def prompts(*metadata):
    """A set of prompts with these columns."""
    count = len(metadata)
    return PromptSet([[1]] * count, ["q"] * count, metadata, range(1, count + 1), "p.jsonl")


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
        ("about 1.5e-07 m", 1.5e-07),
        ("2E3", 2000.0),
        ("\u22125", -5.0),
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
    assert numeric("", "it is 7", {"completion": "4 + 3 = 7"}) == 1.0
    assert numeric("", "it is 7", {"completion": "4 + 3 = 7", "answer": "8"}) == 0.0
    with pytest.raises(InputError, match="has no number"):
        numeric("", "3", {"answer": "three"})
    assert numeric("", "it is 0.00000015", {"answer": 1.5e-07}) == 1.0
    assert numeric("", "so 9", {"answer": "3/4 of 12, for x^2 = 81: 9"}) == 1.0


@pytest.mark.parametrize("value", ["1/2", "5 / 6.", "so #### 3/4", r"$\frac{1}{2}$", r"2\sqrt{3}", "10^6"])
def test_formulas_are_no_numbers(value):
    """Their last number would be taken for their value."""
    with pytest.raises(InputError, match=r"only its last number, \d, would be compared"):
        check_ground_truth(prompts({"answer": value}), load_verifier("numeric"))


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
        load_verifier(name)("", "Answer: 1", {"solution": "1", "source_dataset": "chain_sum"})


@pytest.mark.parametrize("name", ["exact_match", "answer", "numeric", "reasoning_gym"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "null"),
        (["3"], r'list \["3"\]: it must be one text or number'),
        ({"value": 3}, "dict"),
        ("", "empty text"),
        (" ", "empty text"),
        (True, "truth value"),
        (float("nan"), "no number"),
    ],
)
def test_ground_truth_that_nothing_matches_is_refused_before_sampling(name, value, says):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
        says = ""
    good, bad = ({"answer": truth, "source_dataset": "chain_sum"} for truth in ("3", value))
    check_ground_truth(prompts(good, good), load_verifier(name))
    with pytest.raises(InputError, match=rf"^p\.jsonl:2: .*{says}.* Correct them, or leave them out") as raised:
        check_ground_truth(prompts(good, bad, good, bad), load_verifier(name))
    assert "2 of 4 rows are like this: p.jsonl:2, p.jsonl:4." in str(raised.value)


@pytest.mark.parametrize("value", ["3", " 3\n", 3, 3.0, Decimal("3.00")])
def test_numbers_are_read_as_the_verifiers_type(value):
    assert load_verifier("answer")("", "so\nAnswer: 3", {"answer": value}) == 1.0
    assert load_verifier("answer")("", "so\nAnswer: 4", {"answer": value}) == 0.0
    assert load_verifier("numeric")("", "so it is 3.0", {"answer": value}) == 1.0
    assert load_verifier("exact_match")("", "3", {"answer": value, "completion": None}) == 1.0
    assert load_verifier("answer")("", "Answer: 2.5", {"answer": 2.5}) == 1.0


@pytest.mark.parametrize("value", ["Answer: Rome", "steps\n#### Rome", "Rome"])
def test_the_marker_in_a_ground_truth_is_no_part_of_the_answer(value):
    check_ground_truth(prompts({"answer": value}), load_verifier("answer"))
    assert load_verifier("answer")("", "so\nAnswer: Rome", {"answer": value}) == 1.0
    with pytest.raises(InputError, match="nothing follows its marker"):
        check_ground_truth(prompts({"answer": "Answer: "}), load_verifier("answer"))


def test_a_task_without_answers_needs_none():
    pytest.importorskip("reasoning_gym")
    verify = load_verifier("reasoning_gym")
    check_ground_truth(prompts({"answer": None, "source_dataset": "rubiks_cube"}), verify)
    with pytest.raises(InputError, match="There is no reasoning-gym task 'rubik'"):
        check_ground_truth(prompts({"answer": "3", "source_dataset": "rubik"}), verify)


def test_a_verifier_that_nothing_is_written_for_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(ground_truth, "_WITHOUT_MARKER", set())
    questions = prompts({"answer": "3"}, {"answer": "4"})
    with caplog.at_level("WARNING"):
        assert verifier_scores(load_verifier("answer"), questions, [0, 1], ["Answer: 3", "4"]) == [1.0, 0.0]
        assert verifier_scores(load_verifier("numeric"), questions, [0, 1], ["3", "5"]) == [1.0, 0.0]
        assert not caplog.records
        for _ in range(2):
            assert verifier_scores(load_verifier("answer"), questions, [0, 1], ["3", "4"]) == [0.0, 0.0]
    (record,) = caplog.records
    assert "p.jsonl: none of 2 answers has 'Answer:'" in record.message


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            lambda prompt, completion, metadata: metadata["solution"],
            "ended with KeyError: 'solution', .* The row has no 'solution'; its columns are answer",
        ),
        (lambda prompt, completion: 1.0, "ended with TypeError"),
        (lambda prompt, completion, metadata: 1 / 0, "ended with ZeroDivisionError"),
        (lambda prompt, completion, metadata: None, "returned None .* must return a number"),
        (lambda prompt, completion, metadata: "1", "returned '1'"),
        (lambda prompt, completion, metadata: float("nan"), "returned nan"),
    ],
)
def test_what_a_function_of_ones_own_does_wrong_is_said_with_the_row(function, says):
    with pytest.raises(InputError, match=rf"^p\.jsonl:2: the verifier `<lambda>` {says}"):
        verifier_scores(function, prompts({"answer": "3"}, {"answer": "4"}), [1], ["text"])


def test_a_function_of_ones_own_may_declare_what_it_needs():
    @needs({"target": number}, marker="=")
    def below(prompt, completion, metadata):
        return float(len(completion) < metadata["target"])

    assert below("", "ab", {"target": "3"}) == 1.0
    with pytest.raises(InputError, match=r"^p\.jsonl:1: `target` is str \"three\": it has no number"):
        check_ground_truth(prompts({"target": "three"}), below)

    class Longer:
        requirements = Requirements({"target": number})

        def __call__(self, prompt, completion, metadata):
            return 1.0

    with pytest.raises(InputError, match=r"The verifier `Longer` needs the field 'target'.*this one has answer"):
        check_ground_truth(prompts({"answer": 1}), Longer())


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_verifiers.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match="'broken_verifiers', which ends with ZeroDivisionError"):
        load_verifier("broken_verifiers:f")


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
