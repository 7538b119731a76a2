"""Files of pairs: the forms of rows that are read alike, and rows that are refused by number."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_lightning.data import PreferenceDataModule
from dpr_lightning.data.response_pairs import PairedDataset
from dpr_lightning.errors import InputError
from tests.reliability.bad_data import CHAT_TEMPLATE
from tests.workspace import write_rows

PAIR = {"prompt": "1 + 1 =", "chosen": "Answer: 2", "rejected": "Answer: 30"}
USER = {"role": "user", "content": "1 + 1 ="}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(tmp_path: Path, policy: Path, rows: list[Any], **options: Any) -> PreferenceDataModule:
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    defaults = {"tokenizer": str(policy), "cache_dir": None, "validation": None, "batch_size": 8}
    data = PreferenceDataModule(path, **(defaults | options))
    data.setup("fit")
    return data


def texts(data: PreferenceDataModule, index: int = 0) -> tuple[str, str]:
    """What is learnt of the two responses of a row."""
    assert isinstance(data.train_data, PairedDataset)
    examples = (data.train_data.example(index), data.train_data.rejected.example(index))
    learnt = [[token for token, acted in zip(row.tokens, row.mask, strict=True) if acted] for row in examples]
    chosen, rejected = (data.tokenizer.decode(tokens) for tokens in learnt)
    return chosen, rejected


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"Prompt": "1 + 1 =", "Chosen": "Answer: 2", "Rejected": "Answer: 30"},
        PAIR | {"score_chosen": 9.0, "score_rejected": 1.0, "metadata": {"answer": "2"}},
    ],
)
def test_plain_forms(row: dict[str, Any], tmp_path: Path, tiny_policy_folder: Path) -> None:
    assert texts(load(tmp_path, tiny_policy_folder, [row])) == ("Answer: 2<eos>", "Answer: 30<eos>")


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [USER], "chosen": [say("Answer: 2")], "rejected": [say("Answer: 30")]},
        {"prompt": [USER], "chosen": "Answer: 2", "rejected": "Answer: 30"},
        {"messages": [USER], "chosen": "Answer: 2", "rejected": "Answer: 30"},
        {"chosen": [USER, say("Answer: 2")], "rejected": [USER, say("Answer: 30")]},
        # UltraFeedback: the prompt as a text too, and the chosen conversation once more.
        {"prompt": "1 + 1 =", "chosen": [USER, say("Answer: 2")], "rejected": [USER, say("Answer: 30")]}
        | {"messages": [USER, say("Answer: 2")]},
    ],
)
def test_conversational_forms_are_the_same_pair(row: dict[str, Any], tmp_path: Path, tiny_policy_folder: Path) -> None:
    data = load(tmp_path, tiny_policy_folder, [row], chat_template=CHAT_TEMPLATE)
    assert isinstance(data.train_data, PairedDataset)
    chosen, rejected = data.train_data.example(0), data.train_data.rejected.example(0)
    plain = load(tmp_path, tiny_policy_folder, [PAIR], chat_template=CHAT_TEMPLATE).train_data
    assert isinstance(plain, PairedDataset)
    assert chosen == plain.example(0)
    assert rejected == plain.rejected.example(0)


def test_only_the_last_turn_is_compared(
    tmp_path: Path, tiny_policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreferenceDataModule, "_scores_pairs", False)
    start = [USER, say("Answer: 2"), {"role": "user", "content": "2 + 2 ="}]
    row = {"chosen": [*start, say("4")], "rejected": [*start, say("50")]}
    data = load(tmp_path, tiny_policy_folder, [row], chat_template=CHAT_TEMPLATE)
    assert "Answer: 2" in texts(data)[0]
    (batch,) = data.train_dataloader()
    learnt = [data.tokenizer.decode(tokens[mask]) for tokens, mask in zip(batch.tokens, batch.mask, strict=True)]
    assert learnt == ["4<eos>", "50<eos>"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [PAIR, {**PAIR, "rejected": PAIR["chosen"]}],
            r"1 of 2 rows.*same chosen and rejected.*jsonl:2.*on_equal: drop",
        ),
        ([PAIR, {"prompt": "1 =", "chosen": "2"}], r"jsonl:2 has no 'rejected' response; its keys are"),
        ([PAIR, {"prompt": "1 =", "rejected": "2"}], r"jsonl:2 has no 'chosen' response"),
        ([{"prompt": "1 =", "completion": "2", "label": True}], r"jsonl:1 has no 'chosen'.*label"),
        ([PAIR, {**PAIR, "rejected": None}], r"jsonl:2 has no 'rejected'"),
        ([PAIR, {**PAIR, "rejected": "  "}], r"jsonl:2 has an empty 'rejected' response"),
        ([PAIR, {**PAIR, "chosen": ""}], r"jsonl:2 has an empty 'chosen' response"),
        ([PAIR, {**PAIR, "chosen": [say("")]}], r"jsonl:2 has an empty 'chosen' response"),
        ([PAIR, {**PAIR, "chosen": 7}], r"jsonl:2 has int 7 in 'chosen'"),
        ([PAIR, {**PAIR, "loss_spans": [{"start": 0, "end": 1, "weight": 0}]}], r"jsonl:2 has 'loss_spans'"),
    ],
)
def test_rows_that_are_no_pairs(rows: list[Any], says: str, tmp_path: Path, tiny_policy_folder: Path) -> None:
    with pytest.raises(InputError, match=says):
        load(tmp_path, tiny_policy_folder, rows)


def test_responses_to_different_prompts(tmp_path: Path, tiny_policy_folder: Path) -> None:
    other = {"role": "user", "content": "3 + 3 ="}
    row = {"chosen": [USER, say("2")], "rejected": [other, say("50")]}
    with pytest.raises(InputError, match=r"jsonl:1.*different prompts"):
        load(tmp_path, tiny_policy_folder, [row], chat_template=CHAT_TEMPLATE)


def test_equal_and_long_pairs_are_dropped_whole(tmp_path: Path, tiny_policy_folder: Path) -> None:
    rows = [PAIR, {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "rejected": "9" * 60}, {**PAIR, "chosen": "8" * 60}]
    rows += [{**PAIR, "chosen": "7"}]
    data = load(tmp_path, tiny_policy_folder, rows, on_equal="drop", max_length=40, over_length="drop")
    assert isinstance(data.train_data, PairedDataset)
    assert data.train_data.numbers.tolist() == data.train_data.rejected.numbers.tolist() == [1, 5]
    assert any("1 of 3 rows have the same" in note for note in data.train_data.report.notes)
    with pytest.raises(InputError, match=r"No pair of .* is left"):
        load(tmp_path, tiny_policy_folder, [rows[1]], on_equal="drop")


def test_a_budget_counts_both_responses_and_the_split_keeps_prompts_whole(
    tmp_path: Path, tiny_policy_folder: Path
) -> None:
    rows = [{**PAIR, "prompt": f"{n % 20} =", "rejected": "1" * (3 + n)} for n in range(60)]
    data = load(tmp_path, tiny_policy_folder, rows, batch_size=None, token_budget=200, validation=0.2)
    train, validation = data.train_data, data.validation_data
    assert isinstance(train, PairedDataset)
    assert isinstance(validation, PairedDataset)
    assert not set(train.prompt_hashes) & set(validation.prompt_hashes)
    assert train.numbers.tolist() == train.rejected.numbers.tolist()
    sampler = data._sampler(train, accumulate=1, shuffle=True)
    for batch in sampler:
        longest = max(int(part.lengths[batch.indices].max()) for part in (train, train.rejected))
        assert 2 * longest * len(batch.indices) <= 200 or len(batch.indices) == 1
        assert torch.tensor(batch.num_tokens) == len(batch.indices)


def test_tokens_are_cached(tmp_path: Path, tiny_policy_folder: Path) -> None:
    cache = tmp_path / "cache"
    first = load(tmp_path, tiny_policy_folder, [PAIR], cache_dir=str(cache))
    entries = {path.name for path in cache.iterdir()}
    assert len(entries) == 2
    assert texts(load(tmp_path, tiny_policy_folder, [PAIR], cache_dir=str(cache))) == texts(first)
    assert {path.name for path in cache.iterdir()} == entries
