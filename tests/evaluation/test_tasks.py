import json
import os

import pytest

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation import tasks
from dpr_lightning.evaluation.tasks import TASKS, make_splits, make_task, write_jsonl
from dpr_lightning.evaluation.verifiers import load_verifier

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("rationale", ["digits", "running"])
@pytest.mark.parametrize("short_prompt", [False, True])
def test_every_row_verifies_and_prompts_are_distinct(name, rationale, short_prompt):
    rows = make_task(name, 60, seed=3, rationale=rationale, short_prompt=short_prompt)
    assert len({row["prompt"] for row in rows}) == len(rows) == 60
    for row in rows:
        assert row["completion"].endswith(f"\nAnswer: {row['answer']}")
        for verifier in ("answer", "reasoning_gym"):
            assert load_verifier(verifier)(row["prompt"], row["completion"], row["metadata"]) == 1.0
            assert load_verifier(verifier)(row["prompt"], f"{row['completion']}x", row["metadata"]) == 0.0
        assert json.loads(json.dumps(row)) == row


def test_short_prompts_are_the_bare_problem():
    long = make_task("chain_sum", 5, seed=1)
    short = make_task("chain_sum", 5, seed=1, short_prompt=True)
    for full, bare in zip(long, short, strict=True):
        assert full["prompt"] == f"State the final answer to the following arithmetic problem: {bare['prompt']}\n"
        assert full["completion"] == bare["completion"]


def test_neighbouring_seeds_share_no_stream():
    settings = {"min_terms": 5, "max_terms": 5}
    first, second = (make_task("chain_sum", 200, seed=seed, **settings) for seed in (0, 1))
    assert not {row["prompt"] for row in first} & {row["prompt"] for row in second}
    assert first == make_task("chain_sum", 200, seed=0, **settings)


def test_settings_make_it_easier():
    rows = make_task("chain_sum", 40, seed=0, operators="+", min_terms=2, max_terms=2, max_digits=2)
    assert all("-" not in row["prompt"] and row["metadata"]["num_terms"] == 2 for row in rows)
    for row in make_task("chain_sum", 40, seed=0, non_negative=True):
        assert not any(part.startswith("-") for part in row["completion"].replace(">", "\n").split("\n"))


def test_splits_are_disjoint_and_the_first_does_not_depend_on_the_others():
    small_space = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    few = make_splits("chain_sum", {"test": 40, "train": 20}, seed=5, **small_space)
    many = make_splits("chain_sum", {"test": 40, "train": 60, "rl": 50}, seed=5, **small_space)
    prompts = [row["prompt"] for rows in many.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == 150
    assert few["test"] == many["test"]
    assert few["train"] == many["train"][:20]
    other = make_splits("chain_sum", {"test": 40}, seed=5, exclude=[many["test"][0]["prompt"]], **small_space)
    assert many["test"][0]["prompt"] not in {row["prompt"] for row in other["test"]}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: make_task("chain_sums", 1), "Did you mean 'chain_sum'"),
        (lambda: make_task("chain_sum", 0), "one or more"),
        (lambda: make_task("chain_sum", 1, rationale="digit"), "'digits'"),
        (lambda: make_task("chain_sum", 1, operators="*"), "operators"),
        (lambda: make_task("products", 1, operators="+"), "chain_sum"),
        (lambda: make_task("chain_sum", 1, max_term=3), "max_terms"),
        (lambda: make_task("chain_sum", 1, max_terms=1), "refuses"),
        (
            lambda: make_task("chain_sum", 300, min_terms=2, max_terms=2, min_digits=1, max_digits=1),
            "Only 200 of 300 distinct",
        ),
    ],
)
def test_wrong_requests_say_what_is_wrong(call, match):
    with pytest.raises(InputError, match=match):
        call()


def test_a_wrong_rationale_is_not_handed_out(monkeypatch):
    monkeypatch.setattr(tasks, "ANSWER_MARKER", "Answer: 1")
    with pytest.raises(RuntimeError, match="fails its own task's scorer"):
        make_task("chain_sum", 1)


def test_jsonl_is_written_whole_or_not_at_all(tmp_path):
    path = write_jsonl([{"prompt": "é", "n": 1}, {"prompt": "b\nc", "n": 2}], tmp_path / "new" / "rows.jsonl")
    assert [json.loads(line)["n"] for line in path.read_text("utf-8").splitlines()] == [1, 2]

    def broken():
        yield {"n": 3}
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_jsonl(broken(), path)
    assert len(path.read_text("utf-8").splitlines()) == 2
    assert os.listdir(path.parent) == ["rows.jsonl"]
