"""Rows as other data sets write them: what becomes prompt, completion and answer, and that no text is lost."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_lightning.data import open_rows
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.conversations import Example, to_demonstration, to_prompt
from dpr_lightning.data.row_columns import CONTENT
from dpr_lightning.data.row_shapes import recognise
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.tokenized import tokenize_rows
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import load_verifier
from tests.data.conftest import make_tokenizer


def row(**values: Any) -> Row:
    return Row("f.jsonl", 7, values)


def turns(example: Example) -> list[tuple[str, str]]:
    messages = (*example.prompt_messages(), *example.completion_messages())
    return [(message.role, message.content) for message in messages]


PAIR = [("user", "one"), ("assistant", "two")]
CHAT = [("system", "be brief"), *PAIR, ("user", "three"), ("assistant", "four")]


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)]


def sharegpt(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


SHAPES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "ShareGPT (conversations/from/value)": (
        {
            "conversations": sharegpt(
                ("system", "be brief"), ("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "four")
            )
        },
        CHAT,
    ),
    "messages (dialog)": ({"dialog": [{"role": "Human", "content": "one"}, {"role": "bot", "content": "two"}]}, PAIR),
    "messages (conversation)": (
        {"conversation": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
        PAIR,
    ),
    "messages (turns)": (
        {"turns": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
        PAIR,
    ),
    "Alpaca (instruction, input, output)": (
        {"instruction": "add", "input": "1 + 2", "output": "3"},
        [("user", "add\n\n1 + 2"), ("assistant", "3")],
    ),
    "Alpaca (instruction, context, response)": (
        {"instruction": "when?", "context": "In 1969.", "response": "1969", "category": "qa"},
        [("user", "when?\n\nIn 1969."), ("assistant", "1969")],
    ),
    "Alpaca (instruction, response)": ({"instruction": "one", "response": "two"}, PAIR),
    "Alpaca (instruction, input, output) after its history": (
        {
            "instruction": "three",
            "input": "",
            "output": "four",
            "system": "be brief",
            "history": [["one", "two"]],
        },
        CHAT,
    ),
    "prompt and completion (question, answer)": ({"question": "one", "answer": "two"}, PAIR),
    "prompt and completion (Question, Answer)": ({"Question": "one", "Answer": "two"}, PAIR),
    "prompt and completion (question, response)": (
        {"system_prompt": "be brief", "question": "one", "response": "two"},
        [("system", "be brief"), *PAIR],
    ),
    "prompt and completion (prompt, response)": ({"prompt": "one", "response": "two"}, PAIR),
    "prompt and completion (problem, solution)": ({"problem": "one", "solution": "two", "answer": "2"}, PAIR),
    "prompt and completion (query, response)": ({"query": "one", "response": "two", "type": "GSM_AnsAug"}, PAIR),
    "prompt and completion (input, output)": ({"input": "one", "output": "two"}, PAIR),
    "prompt and completion (inputs, targets)": ({"inputs": "one", "targets": "two"}, PAIR),
    "preferences (prompt, chosen)": ({"prompt": "one", "chosen": "two", "rejected": "2"}, PAIR),
    "preferences (chosen)": ({"chosen": "\n\nHuman: one\n\nAssistant: two", "rejected": "\n\nHuman: one"}, PAIR),
    "text with markers (### Human:)": ({"text": "### Human: one### Assistant: two"}, PAIR),
    "text with markers (### Instruction:)": (
        {"text": "be brief\n\n### Instruction:\nadd\n\n### Input:\n1 + 2\n\n### Response:\n3</s>"},
        [("system", "be brief"), ("user", "add\n\n1 + 2"), ("assistant", "3")],
    ),
    "text with markers (ChatML)": (
        {
            "text": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
            "two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
        },
        CHAT,
    ),
    "text with markers (Llama 2)": (
        {"text": "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\none [/INST] two </s><s>[INST] three [/INST] four </s>"},
        CHAT,
    ),
    "text with markers (Llama 3)": (
        {
            "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\none<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\ntwo<|eot_id|>"
        },
        PAIR,
    ),
    "text with markers (Gemma)": (
        {"text": "<bos><start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\ntwo<end_of_turn>\n"},
        PAIR,
    ),
    "text with markers (Zephyr)": ({"text": "<|user|>\none</s>\n<|assistant|>\ntwo</s>"}, PAIR),
    "text with markers (USER:)": ({"text": "USER: one ASSISTANT: two</s>USER: three ASSISTANT: four</s>"}, CHAT[1:]),
    "text with markers (User:)": ({"text": "User: one\nAssistant: two"}, PAIR),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_read_with_all_its_text(shape: str) -> None:
    values, expected = SHAPES[shape]
    example = to_demonstration(row(**values))
    assert turns(example) == expected
    assert example.shape == shape
    prompt = to_prompt(row(**values)).prompt_messages()
    assert [message.content for message in prompt] == [message.content for message in example.prompt_messages()]


def test_the_columns_of_the_package_are_not_reported() -> None:
    for values in ({"prompt": "one", "completion": "two"}, {"messages": [{"role": "user", "content": "one"}]}):
        assert recognise(row(**values)).shape == ""


def test_the_answer_of_a_question_is_learnt_and_is_the_ground_truth() -> None:
    example = to_demonstration(row(question="How many?", answer="8 + 16 = 24\n#### 24"))
    assert example.completion == "8 + 16 = 24\n#### 24"
    metadata = to_prompt(row(question="How many?", answer="8 + 16 = 24\n#### 24")).metadata
    assert load_verifier("numeric")("How many?", "It is 24", metadata)
    assert to_prompt(row(problem="p", solution="so 3", answer="3")).metadata["answer"] == "3"


def test_a_seed_task_of_self_instruct_is_an_alpaca_row() -> None:
    task = {"id": "seed_task_0", "instruction": "add", "instances": [{"input": "1 + 2", "output": "3"}]}
    example = to_demonstration(row(**task))
    assert (example.prompt, example.completion, example.shape) == (
        "add\n\n1 + 2", "3", "Alpaca (instruction, input, output)"
    )  # fmt: skip
    assert to_prompt(row(**task)).metadata["completion"] == "3"
    with pytest.raises(InputError, match=r"has 2 `instances`\. Write each in a row"):
        to_demonstration(row(**{**task, "instances": task["instances"] * 2}))
    assert to_demonstration(row(prompt="q", completion="a", instances=[1])).unused == ("instances",)


def test_calls_and_results_of_tools_in_sharegpt() -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    conversation = sharegpt(("human", "1 + 2"), ("function_call", call), ("observation", "3"), ("gpt", "It is 3."))
    example = to_demonstration(row(conversations=conversation))
    assert [role for role, _ in turns(example)] == ["user", "assistant", "tool", "assistant"]
    (tool_call,) = example.prompt_messages()[1].tool_calls
    assert tool_call["function"] == {"name": "add", "arguments": {"a": 1}}


def test_columns_win_over_what_a_row_looks_like() -> None:
    values = {"instruction": "add", "input": "1 + 2", "output": "3", "text": "add 1 + 2"}
    example = to_demonstration(row(**values), {"prompt": "input", "completion": "output"})
    assert (example.prompt, example.completion, example.unused) == ("1 + 2", "3", ("instruction", "text"))
    example = to_demonstration(row(**values), {"prompt": "input+instruction"})
    assert (example.prompt, example.completion) == ("1 + 2\n\nadd", "3")


def test_an_answer_that_columns_name_is_no_other_column() -> None:
    values = {"prompt": "q", "answer": "a", "truth": "b"}
    assert to_prompt(row(**values), {"answer": "truth"}).metadata["answer"] == "b"
    assert "answer" not in to_prompt(row(**values), {"answer": "trth"}).metadata


@pytest.mark.parametrize(
    ("values", "unused"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8.0}, ("rejected", "score_chosen")),
        ({"prompt": "q", "completion": "a", "weight": 0.5, "label": False}, ("weight", "label")),
        ({"prompt": "q", "completion": "a", "weight": None, "id": 3, "source": "web"}, ()),
        ({"prompt": "q", "completion": "a", "input": "what q is about"}, ("input",)),
        ({"question": "q", "answer": "a", "rationale": "because of this"}, ("rationale",)),
        ({"prompt": "q", "completion": "a", "reasoning_content": "because of this"}, ("reasoning_content",)),
        ({"instruction": "add", "input": "1 + 2", "output": "3", "text": "add\n1 + 2\n3"}, ()),
    ],
)
def test_columns_that_are_not_used_are_named(values: dict[str, Any], unused: tuple[str, ...]) -> None:
    assert to_demonstration(row(**values)).unused == unused


def test_columns_that_only_verifiers_read_are_named_in_one_sentence(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    first = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], "answer": "two"}
    tools = {"functions": [{"name": "add"}]}
    lines = [{**first, "id": 1, "mood": "calm"}, {**first, "id": 2, "note": None, **tools}]
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes = tokenize_rows(open_rows(str(file)), tokenizer, choose_format(tokenizer)).report.notes
    assert [note for note in notes if "`tools`" not in note] == [
        "only verifiers read the columns 'id' (2 rows), 'mood' (1 row)."
    ]
    file.write_text("".join(json.dumps({**first, **{f"c{number}": 1 for number in range(20)}}) + "\n"))
    (note,) = tokenize_rows(open_rows(str(file)), tokenizer, choose_format(tokenizer)).report.notes
    assert note.endswith("'c11' (1 row) and 8 more.")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "one word", "completon": "two words"}, "columns: {completion: completon}"),
    ({"prompt": "one word", "answer": "two words"}, "columns: {completion: answer}"),
    ({"promt": "one word", "completion": "two words"}, "columns: {prompt: promt}"),
    ({"question": "one word", "context": "three of them", "answer": "two words"}, "question+context"),
    ({"prompt": "one word", "input": "three of them", "output": "two words"}, "prompt+input"),
    ({"instruction": "be good", "question": "one word", "output": "two words"}, "instruction"),
    ({"instruction": "be good", "input": "one word", "context": "and this", "output": "two words"}, "input"),
    ({"question": "one word", "response": "two words", "solution": "three of them"}, "solution"),
    (
        {"messages": [{"role": "user", "content": "one word"}], "conversations": [{"role": "user", "content": "b"}]},
        "{messages: conversations}",
    ),
    (
        {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}], "prompt": "d e"},
        "{prompt: prompt}",
    ),
    (
        {"messages": [{"role": "user", "content": "a b"}], "completion": "d e"},
        "{prompt: messages, completion: completion}",
    ),
    ({"frage": "one word", "antwort": "two words"}, "its keys are 'frage', 'antwort'"),
    ({"prompt": "one word", "completon": "two words", "note": "three more words"}, "has no 'completion'"),
    ({"text": "one word and two"}, "without markers"),
    ({"text": "### Human: one word ### Human: two words"}, "two turns of the user"),
    ({"prompt": "q", "completion": "a", "images": ["a.png"]}, "Only text is learnt"),
    (
        {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "q"}], "system": "b"},
        "system turn",
    ),
    ({"instruction": "q", "output": "a", "history": ["one", "two"]}, "[question, answer]"),
]


def texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    return [text for part in value for text in texts_of(part)] if isinstance(value, list) else []


@pytest.mark.parametrize(("values", "says"), REFUSED)
def test_what_is_not_clear_is_refused_and_no_advice_loses_a_text(values: dict[str, Any], says: str) -> None:
    """Each remedy that is printed is followed: the row is then read, and what it leaves out is what was said."""
    with pytest.raises(InputError) as raised:
        to_demonstration(row(**values))
    message = str(raised.value)
    assert message.startswith("f.jsonl:7 ")
    assert says in message
    assert len(message) < 400
    advice = [yaml.safe_load(option) for option in re.findall(r"columns: \{[^}]*\}", message)]
    lost = []
    for option in advice:
        canonical = recognise(row(**values), option["columns"])
        used = "\n".join(texts_of([canonical.messages, canonical.prompt, canonical.completion]))
        left_out = {key for key, value in values.items() if any(text not in used for text in texts_of(value))}
        assert left_out <= set(canonical.unused)
        lost.append(left_out)
    if "a column left out is not learnt from" in message:
        assert len(advice) > 1
    else:
        assert not any(lost)


def test_no_column_of_a_known_shape_is_dropped_unseen() -> None:
    """Of every shape: each text is in what is read, and a further column of text is named."""
    for values, _ in SHAPES.values():
        for extra in sorted(CONTENT - {key.lower() for key in values} - {"answer", "system", "system_prompt"}):
            try:
                example = to_demonstration(row(**values, **{extra: "a text that stands nowhere else"}))
            except InputError:
                continue
            used = "\n".join(text for _, text in turns(example))
            assert "stands nowhere else" in used or extra in example.unused
