"""HashedPrompts alone, and whether sets of them are disjoint."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.overlap import HashedPrompts, check_overlap
from dpr_lightning.data.prompt_identity import hold_out_prompts, prompt_folds, prompt_hash
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.data.rows import open_rows
from dpr_lightning.data.tokenized import tokenize_rows
from dpr_lightning.errors import InputError

Writer = Callable[..., str]


def rows(start: int, end: int) -> list[dict[str, str]]:
    return [{"prompt": f"What is {index}?", "completion": f"It is {index}."} for index in range(start, end)]


def test_prompts_are_those_of_the_demonstrations(write_rows: Writer, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_rows(rows(0, 30))
    prompts = PromptSet.load(file, chat_tokenizer)
    demonstrations = tokenize_rows(open_rows(file), chat_tokenizer, choose_format(chat_tokenizer))
    for index in range(30):
        tokens, mask, *_ = demonstrations.example(index)
        assert prompts.tokens[index] == tokens[: mask.index(True)]
        assert prompts.where(index) == demonstrations.where(index) == f"{file}:{index + 1}"
    assert prompts.texts[4] == "What is 4?"
    assert prompts.metadata[4] == {"completion": "It is 4."}
    assert (prompts.prompt_hashes == demonstrations.prompt_hashes).all()
    selected = prompts.select([4, 2])
    assert (selected.texts, selected.numbers, len(selected)) == (["What is 4?", "What is 2?"], [5, 3], 2)
    assert len(PromptSet.load(file, chat_tokenizer, limit=7)) == 7


def test_long_prompts_are_refused_or_counted(write_rows: Writer, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    file = write_rows([{"prompt": "hi"}, {"prompt": "hello " * 50}, {"prompt": "hello"}])
    with pytest.raises(InputError, match=r"1 of 3 rows are longer than max_prompt_length=20.*:2 \("):
        PromptSet.load(file, plain_tokenizer, max_prompt_length=20)
    prompts = PromptSet.load(file, plain_tokenizer, max_prompt_length=20, over_length="drop")
    assert (prompts.numbers, prompts.dropped) == ([1, 3], 1)
    assert "1 dropped" in str(prompts)
    with pytest.raises(InputError, match="asks something else"):
        PromptSet.load(file, plain_tokenizer, over_length="truncate")
    with pytest.raises(InputError, match="3 of 3"):
        PromptSet.load(file, plain_tokenizer, max_prompt_length=0, over_length="drop")


def test_the_same_prompt_is_recognised_in_another_form() -> None:
    assert prompt_hash("a  b\n") == prompt_hash(" a b") != prompt_hash("a B")
    assert prompt_hash("\u00e9") == prompt_hash("e\u0301")


def test_overlap_is_counted_named_and_refused(write_rows: Writer, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    first = write_rows(rows(0, 20), "first.jsonl")
    chats = [{"messages": [{"role": "user", "content": f"What  is {index}?"}]} for index in range(15, 40)]
    second = write_rows([*chats, chats[-1]], "second.jsonl")
    third = write_rows(rows(100, 110), "third.jsonl")
    sets: dict[str, HashedPrompts] = {
        "demonstrations": tokenize_rows(open_rows(first), chat_tokenizer, choose_format(chat_tokenizer)),
        "rl": PromptSet.load(second, chat_tokenizer),
        "evaluation": PromptSet.load(third, chat_tokenizer),
    }
    with pytest.raises(
        InputError, match=r"(?s)share 5 prompts: .*first\.jsonl:16 = .*second\.jsonl:1; .*allow_overlap"
    ) as raised:
        check_overlap(sets)
    assert len(str(raised.value)) < 1000
    report = check_overlap(sets, allow_overlap=True)
    assert report.shared == {("demonstrations", "rl"): 5, ("demonstrations", "evaluation"): 0, ("rl", "evaluation"): 0}
    assert report.duplicates == {"demonstrations": 0, "rl": 1, "evaluation": 0}
    assert len(report.examples["demonstrations", "rl"]) == 3
    disjoint = check_overlap({"rl": sets["rl"], "evaluation": sets["evaluation"]})
    assert not any(disjoint.shared.values())


def test_held_out_prompts_take_all_their_rows_and_do_not_depend_on_order() -> None:
    hashes = np.array([prompt_hash(f"prompt {index % 50}") for index in range(200)], dtype=np.int64)
    held_out = hold_out_prompts(hashes, 0.2, seed=1, source="f")
    assert len(np.unique(hashes[held_out])) == 10
    assert not set(hashes[held_out]) & set(hashes[~held_out])
    shuffled = np.random.default_rng(0).permutation(200)
    assert set(hashes[shuffled][hold_out_prompts(hashes[shuffled], 0.2, 1, "f")]) == set(hashes[held_out])
    assert set(hashes[hold_out_prompts(hashes, 0.2, 2, "f")]) != set(hashes[held_out])
    with pytest.raises(InputError, match="between 0 and 1"):
        hold_out_prompts(hashes, 1.5, 0, "f")
    with pytest.raises(InputError, match="only 1 different"):
        hold_out_prompts(hashes[:1], 0.5, 0, "f")


def test_folds_have_all_rows_of_a_prompt_and_do_not_depend_on_order() -> None:
    hashes = np.array([prompt_hash(f"prompt {index % 50}") for index in range(200)], dtype=np.int64)
    folds = prompt_folds(hashes, 4, seed=1, source="f")
    prompts_by_fold = [set(hashes[folds == fold]) for fold in range(4)]
    assert sorted(map(len, prompts_by_fold)) == [12, 12, 13, 13]
    assert len(set().union(*prompts_by_fold)) == 50
    shuffled = np.random.default_rng(0).permutation(200)
    assert (prompt_folds(hashes[shuffled], 4, 1, "f") == folds[shuffled]).all()
    assert (prompt_folds(hashes, 4, 2, "f") != folds).any()
    assert sorted(prompt_folds(hashes[:3], 3, 0, "f")) == [0, 1, 2]
    for count, hashed, words in ((1, hashes, "2 or more"), (51, hashes, "50 or less"), (2, hashes[:1], "one prompt")):
        with pytest.raises(InputError, match=words):
            prompt_folds(hashed, count, 0, "f")
