"""What rows say reaches the chat template, or is named."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import PromptSet, open_rows, to_demonstration, to_prompt, tokenize_example, tokenize_prompt
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.rows import Row
from dpr_lightning.data.template_inputs import with_defaults
from dpr_lightning.data.tokenized import tokenize_rows
from dpr_lightning.errors import InputError
from tests.data.conftest import make_tokenizer
from tests.data.templates import CHATML, DOCUMENTS, GLM, LLAMA, MISTRAL, QWEN3, R1

WriteRows = Callable[..., str]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it warm in Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 0},
    {"role": "tool", "content": "31 degrees", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "Yes, 31 degrees."},
]
ASK, SAY = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "yes"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def row(**values: Any) -> Row:
    return Row("f.jsonl", 7, values)


def texts(tokenizer: PreTrainedTokenizerFast, template: str, **values: Any) -> tuple[str, str]:
    """A demonstration's text before its last learnt turn, and the turn; the same row's prompt must be the former."""
    result = tokenize_example(to_demonstration(row(**values)), tokenizer, template)
    start = len(result.mask) - result.mask[::-1].index(False)
    prompt = tokenize_prompt(to_prompt(row(**values)), tokenizer, template)
    assert result.tokens[:start] == prompt
    return str(tokenizer.decode(result.tokens[:start])), str(tokenizer.decode(result.tokens[start:]))


def rendered(tokenizer: PreTrainedTokenizerFast, template: str, messages: list[Any], **inputs: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **inputs)).rstrip()


@pytest.mark.parametrize("template", [QWEN3, LLAMA, MISTRAL], ids=["qwen3", "llama", "mistral"])
@pytest.mark.parametrize("form", ["list", "json", "arrow"])
def test_tools_reach_the_template(tokenizer: PreTrainedTokenizerFast, template: str, form: str) -> None:
    tools: Any = TOOLS
    if form == "json":
        tools = json.dumps(TOOLS)
    elif form == "arrow":
        (tool,) = json.loads(json.dumps(TOOLS))
        tool["function"]["parameters"]["properties"]["other"] = None
        tools = [tool]
    prompt, answer = texts(tokenizer, template, messages=WITH_TOOLS, tools=tools)
    assert prompt + answer == rendered(tokenizer, template, WITH_TOOLS, tools=TOOLS)
    assert "weather" in prompt
    assert prompt + answer != rendered(tokenizer, template, WITH_TOOLS)


def test_tools_without_a_wrapper_are_wrapped_where_the_template_needs_it(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = [TOOLS[0]["function"]]
    prompt, _ = texts(tokenizer, MISTRAL, messages=[ASK, SAY], tools=bare)
    assert "[TOOLS]weather" in prompt
    prompt, _ = texts(tokenizer, QWEN3, messages=[ASK, SAY], tools=bare)
    assert json.dumps(bare[0]) in prompt
    # OpenAI's older column; a list of anything else is no tool.
    prompt, _ = texts(tokenizer, QWEN3, messages=[ASK, SAY], functions=bare)
    assert json.dumps(TOOLS[0]) in prompt
    assert texts(tokenizer, QWEN3, messages=[ASK, SAY], functions=["sin"]) == texts(
        tokenizer, QWEN3, messages=[ASK, SAY]
    )


def test_documents_and_variables_reach_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [{"title": "Cats", "text": "They purr.", "url": None}]
    prompt, _ = texts(tokenizer, DOCUMENTS, messages=[ASK, SAY], documents=documents)
    assert prompt.startswith("<|start|>Cats: They purr.")
    prompt, answer = texts(tokenizer, QWEN3, messages=[ASK, SAY], chat_template_kwargs={"enable_thinking": False})
    assert (prompt[-19:], answer) == ("<think>\n\n</think>\n\n", "yes<|end|>")
    prompt, answer = texts(tokenizer, QWEN3, messages=[ASK, SAY])
    assert answer == "<think>\n\n</think>\n\nyes<|end|>"


def test_rows_with_other_tools_or_documents_are_other_prompts() -> None:
    first, second = (
        to_prompt(row(prompt="Sum up.", documents=[{"title": name, "text": "x"}])).prompt_text for name in "ab"
    )
    assert first != second
    assert "weather" in to_prompt(row(prompt="Sum up.", tools=TOOLS)).prompt_text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tools": "no json"}, r"a text at 'tools' that is no JSON"),
        ({"tools": ["add"]}, r"list \[\"add\"\] in 'tools'"),
        ({"documents": 3}, r"int 3 in 'documents'"),
        ({"chat_template_kwargs": [1]}, r"list \[1\] in 'chat_template_kwargs'"),
        ({"chat_template_kwargs": {"tools": []}}, r"f\.jsonl:7, 'chat_template_kwargs': 'tools' is no variable"),
        ({"chat_template_kwargs": {"eos_token": "x"}}, "'eos_token' is no variable"),
    ],
)
def test_inputs_of_another_form_are_named(values: dict[str, Any], says: str) -> None:
    for read in (to_demonstration, to_prompt):
        with pytest.raises(InputError, match=says):
            read(row(messages=[ASK, SAY], **values))


def test_defaults_of_variables_become_part_of_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    form = choose_format(tokenizer, QWEN3, chat_template_kwargs={"enable_thinking": False})
    assert form.chat_template is not None
    plain = choose_format(tokenizer, QWEN3).chat_template
    for values in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        expected = {"enable_thinking": False, **values}
        assert rendered(tokenizer, form.chat_template, [ASK], add_generation_prompt=True, **values) == rendered(
            tokenizer, str(plain), [ASK], add_generation_prompt=True, **expected
        )
    with pytest.raises(InputError, match=r"'enable_thinkin', which .* Did you mean 'enable_thinking'"):
        choose_format(tokenizer, QWEN3, chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(InputError, match="there is none"):
        choose_format(tokenizer, "none", chat_template_kwargs={"a": 1})


def test_defaults_of_every_type_are_written_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    values = {"a": None, "b": True, "c": 'it\'s "x"\n%} ü', "d": [1, 2.5, {"k": "v"}], "e": {"k": [False]}}
    template = with_defaults("\n{{ a is none }} {{ b }} {{ c }} {{ d | tojson }} {{ e | tojson }}", values)
    expected = f"\nTrue True {values['c']} {json.dumps(values['d'])} {json.dumps(values['e'])}"
    assert tokenizer.apply_chat_template([ASK], chat_template=template, tokenize=False) == expected


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_learnt_under_the_key_that_the_template_reads(
    tokenizer: PreTrainedTokenizerFast, key: str
) -> None:
    turns = [ASK, {**SAY, key: "It greets."}]
    assert texts(tokenizer, QWEN3, messages=turns)[1] == "<think>\nIt greets.\n</think>\n\nyes<|end|>"
    assert texts(tokenizer, DOCUMENTS, messages=turns)[1] == "(It greets.)yes<|end|>"


def test_reasoning_in_parts_of_a_content(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "thinking", "thinking": "It greets."}, {"type": "text", "text": "yes"}]
    answer = texts(tokenizer, QWEN3, messages=[ASK, {"role": "assistant", "content": parts}])[1]
    assert answer == "<think>\nIt greets.\n</think>\n\nyes<|end|>"


@pytest.mark.parametrize("opening", ["<think>\n", "<think>"])
@pytest.mark.parametrize("key", [None, "reasoning_content"])
def test_reasoning_goes_on_where_the_prompt_opens_it(
    tokenizer: PreTrainedTokenizerFast, opening: str, key: str | None, write_rows: WriteRows
) -> None:
    """As in DeepSeek-R1 and QwQ, whose templates write no reasoning in finished turns."""
    opens = R1.replace(
        "{{- '<|start|>Assistant: ' }}{% endif %}", f"{{{{- '<|start|>Assistant: {opening}' }}}}{{% endif %}}"
    )
    assert opens != R1
    thought = f"<think>\nIt greets.\n</think>\n\n{SAY['content']}"
    turn = {**SAY, key: "It greets."} if key else {**SAY, "content": thought}
    values = {"messages": [ASK, {**turn, "train": False}, ASK, turn]}
    prompt, answer = texts(tokenizer, opens, **values)
    assert prompt.endswith(f"Hello?<|start|>Assistant: {opening}")
    assert answer.lstrip("\n") == "It greets.\n</think>\n\nyes<|end|>"
    prompts = PromptSet.load(write_rows([values]), tokenizer, chat_template=opens)
    assert prompts.metadata[0]["completion"] == answer.removesuffix("<|end|>")
    notes = tokenize_rows(open_rows(write_rows([values])), tokenizer, choose_format(tokenizer, opens)).report.notes
    assert notes == []  # what such a template cuts from earlier turns is no loss
    # The remedy for a turn without reasoning is followed.
    with pytest.raises(InputError, match="begin its content with") as raised:
        texts(tokenizer, opens, messages=[ASK, SAY])
    advice = str(raised.value).partition("begin its content with ")[2].partition(", or")[0].replace("\\n", "\n")
    answer = texts(tokenizer, opens, messages=[ASK, {**SAY, "content": advice + SAY["content"]}])[1]
    assert answer.lstrip("\n") == "</think>\n\nyes<|end|>"


def test_the_remedy_for_reasoning_after_an_empty_one_works(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = {**SAY, "reasoning_content": "It greets."}
    values: dict[str, Any] = {"messages": [ASK, thought]}
    with pytest.raises(InputError, match=r"chat_template_kwargs: \{enable_thinking: true\}`, or remove the reasoning"):
        texts(tokenizer, QWEN3, **values, chat_template_kwargs={"enable_thinking": False})
    answer = texts(tokenizer, QWEN3, **values, chat_template_kwargs={"enable_thinking": True})[1]
    assert answer == "<think>\nIt greets.\n</think>\n\nyes<|end|>"


def test_contents_are_parts_for_templates_that_take_no_other(tokenizer: PreTrainedTokenizerFast) -> None:
    """As those of SmolVLM and Idefics."""
    parts = CHATML.replace(
        "message.content }}",
        "'' }}{% for part in message.content %}{{ part.text if part.type == 'text' }}{% endfor %}{{ ''}}",
    )
    turns = [{"role": "system", "content": "Be brief."}, ASK, SAY]
    assert texts(tokenizer, parts, messages=turns) == texts(tokenizer, CHATML, messages=turns)


def test_turns_are_learnt_where_the_template_writes_a_token_after_the_last(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As in Phi-3, which closes turns with one stop and the conversation with another."""
    closes = CHATML + "{% if not add_generation_prompt %}{{ '<|end|>' }}{% endif %}"
    turns = [ASK, SAY, ASK, {**SAY, "content": "no"}]
    learnt = [
        tokenizer.decode([token for token, acted in zip(result.tokens, result.mask, strict=True) if acted])
        for result in (
            tokenize_example(to_demonstration(row(messages=turns)), tokenizer, each) for each in (CHATML, closes)
        )
    ]
    assert learnt == ["yes<|end|>no<|end|>"] * 2


def test_arguments_of_calls_are_written_alike_as_object_and_as_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Gemma 4 writes an object in its own form, and a text as it is."""
    calls = (
        "{% for call in message.tool_calls or [] %}{% set a = call.function.arguments %}{{ call.function.name + '{' }}"
        "{% if a is mapping %}{% for key, part in a.items() %}{{ key }}:{{ part }}{% endfor %}"
        "{% else %}{{ a }}{% endif %}{{ '}' }}{% endfor %}"
    )
    template = CHATML.replace("message.content", "message.content }}" + calls + "{{ ''")
    answers = []
    for arguments in ({"city": "Rome"}, '{"city": "Rome"}'):
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        answers.append(texts(tokenizer, template, messages=[ASK, {**SAY, "content": "", "tool_calls": [call]}])[1])
    assert answers == ["weather{city:Rome}<|end|>"] * 2


@pytest.mark.parametrize("content", ["<think>\nIt greets.\n</think>\n\nyes", "<think>It greets.</think>yes"])
def test_tags_that_a_template_sets_anew_are_no_loss(tokenizer: PreTrainedTokenizerFast, content: str) -> None:
    answer = texts(tokenizer, QWEN3, messages=[ASK, {"role": "assistant", "content": content}])[1]
    assert answer == "<think>\nIt greets.\n</think>\n\nyes<|end|>"


def test_what_the_generation_prompt_writes_is_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    opens = CHATML.replace("{{ '<|start|>assistant\\n' }}", "{{ '<|start|>assistant\\nSure: ' }}")
    assert opens != CHATML
    assert texts(tokenizer, opens, messages=[ASK, {**SAY, "content": "Sure: yes"}])[1] == "yes<|end|>"


@pytest.mark.parametrize(
    ("template", "turn", "part"),
    [
        (R1, {"content": "<think>\nhello\n</think>\n\nyes"}, "content"),
        (CHATML, {"content": "yes", "reasoning_content": "hello"}, "reasoning_content"),
        (CHATML, {"content": "", "reasoning_content": "hello"}, "reasoning_content"),
        (CHATML, {"content": "yes", "tool_calls": [CALL]}, r"tool_calls\[0\]"),
        (LLAMA, {"content": "I look it up.", "tool_calls": [CALL]}, "content"),
        (CHATML.replace("message.content", "message.content[:2]"), {"content": "yes sir"}, "content"),
        (CHATML.replace("message.content", "message.content | upper"), {"content": "yes"}, "content"),
        (
            QWEN3.replace("call.arguments | tojson", "'{}'"),
            {"content": "", "tool_calls": [CALL]},
            r"tool_calls\[0\]\.function\.arguments",
        ),
    ],
)
def test_a_part_that_the_template_drops_is_named(
    tokenizer: PreTrainedTokenizerFast, template: str, turn: dict[str, Any], part: str, write_rows: WriteRows
) -> None:
    turns = [ASK, {"role": "assistant", **turn}]
    with pytest.raises(InputError, match=rf"f\.jsonl:7, turn 2 \(assistant\): the chat template leaves out .* {part},"):
        tokenize_example(to_demonstration(row(messages=turns)), tokenizer, template)
    file = open_rows(write_rows([{"messages": turns}, {"messages": [ASK, SAY]}]))
    data = tokenize_rows(file, tokenizer, choose_format(tokenizer, template), on_dropped="warn")
    assert len(data) == 2
    (note,) = [note for note in data.report.notes if "that is learnt" in note]
    assert " first " in note


def test_remedies_for_dropped_reasoning_work(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each is followed, and nothing of the row is lost."""
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "hello"}
    with pytest.raises(InputError, match="Put the reasoning at the beginning of the content, between <think>"):
        texts(tokenizer, CHATML, messages=[ASK, thought])
    content = {"role": "assistant", "content": "<think>\nhello\n</think>\n\nyes"}
    assert texts(tokenizer, CHATML, messages=[ASK, content])[1] == "<think>\nhello\n</think>\n\nyes<|end|>"
    cuts = DOCUMENTS.replace("message.content", "message.content.split('</think>')[-1]")
    with pytest.raises(InputError, match=r"Move what stands between <think> and </think> .* `reasoning_content`"):
        texts(tokenizer, cuts, messages=[ASK, content])
    assert texts(tokenizer, cuts, messages=[ASK, thought])[1] == "(hello)yes<|end|>"
    with pytest.raises(InputError) as raised:  # neither would help: no such advice
        texts(tokenizer, R1, messages=[ASK, thought])
    assert "<think>" not in str(raised.value)
    assert "`data.chat_template`" in str(raised.value)


def test_the_remedy_for_reasoning_cut_from_earlier_turns_works(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "hello"}
    with pytest.raises(InputError, match=r'Mark the earlier turns of the assistant "train": false, or give each turn'):
        texts(tokenizer, QWEN3, messages=[ASK, thought, ASK, thought])
    answer = texts(tokenizer, QWEN3, messages=[ASK, {**thought, "train": False}, ASK, thought])[1]
    assert answer == "<think>\nhello\n</think>\n\nyes<|end|>"
    # Or a row a turn.
    assert texts(tokenizer, QWEN3, messages=[ASK, thought])[1] == answer
    assert texts(tokenizer, QWEN3, messages=[ASK, {**thought, "weight": 0}, ASK, thought])[1] == answer


@pytest.mark.parametrize("template", [QWEN3, LLAMA, R1], ids=["qwen3", "llama", "deepseek"])
@pytest.mark.parametrize("form", ["object", "json", "arrow", "bare", "legacy", "calls as json"])
def test_tool_calls_of_every_form_are_learnt(tokenizer: PreTrainedTokenizerFast, template: str, form: str) -> None:
    arguments: Any = {"city": "Rome"}
    if form == "json":
        arguments = json.dumps(arguments)
    elif form == "arrow":
        arguments = {"a": None, "city": "Rome", "of": {"b": None}}
        arguments.pop("of")
    function = {"name": "weather", "arguments": arguments}
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": function}],
    }
    if form == "bare":
        turn["tool_calls"] = [function]
    elif form == "legacy":
        turn = {"role": "assistant", "content": None, "function_call": function, "tool_calls": None}
    elif form == "calls as json":
        turn["tool_calls"] = json.dumps(turn["tool_calls"])
    answer = texts(tokenizer, template, messages=[ASK, turn])[1]
    assert '{"city": "Rome"}' in answer
    assert "null" not in answer
    assert "None" not in answer


def test_empty_and_null_tool_calls_are_none(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = texts(tokenizer, LLAMA, messages=[ASK, SAY])
    for empty in ([], None, "", "[]"):
        turns = [{**ASK, "tool_calls": empty}, {**SAY, "tool_calls": empty, "function_call": None}]
        assert texts(tokenizer, LLAMA, messages=turns) == expected


def test_roles_are_those_that_the_template_knows(tokenizer: PreTrainedTokenizerFast) -> None:
    developer = [{"role": "developer", "content": "Be brief."}, ASK, SAY]
    assert texts(tokenizer, QWEN3, messages=developer)[0].startswith("<|start|>system\nBe brief.")
    knows = CHATML + "{# 'developer' #}"
    assert texts(tokenizer, knows, messages=developer)[0].startswith("<|start|>developer\nBe brief.")
    for role in ("tool", "function", "ipython", "observation"):
        turns = [*WITH_TOOLS[:2], {"role": role, "content": "31", "name": "weather"}, SAY]
        assert "<tool_response>\n31" in texts(tokenizer, QWEN3, messages=turns)[0]
    turns = [{"role": "human", "content": "Hello?"}, {"role": "GPT", "content": "yes"}]
    assert texts(tokenizer, CHATML, messages=turns) == texts(tokenizer, CHATML, messages=[ASK, SAY])


@pytest.mark.parametrize(
    ("turn", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 1.0}, True),
        ({"weight": None, "train": None}, True),
        ({"train": False, "weight": 0}, False),
        ({"loss": False}, False),
        ({"loss": True, "weight": 1}, True),
        ({"loss": None}, True),
    ],
)
def test_a_turn_of_weight_0_is_not_learnt(turn: dict[str, Any], trained: bool) -> None:
    example = to_demonstration(row(messages=[{**ASK, "weight": 0}, {**SAY, **turn}, {**ASK, "weight": 1}, SAY]))
    assert example.prompt_messages()[1].train is trained


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ASK, {**SAY, "weight": 0.5}], r"float 0\.5 as `weight` at messages\[1\].*counts whole or not at all"),
        ([ASK, {**SAY, "weight": "1"}], r'str "1" as `weight`'),
        ([ASK, {**SAY, "weight": 0, "train": True}], "disagree"),
        ([ASK, {**SAY, "loss": False, "train": True}], "`train` and `loss` that disagree"),
        ([ASK, {**SAY, "reasoning": 3}], "int 3 as `reasoning`"),
        ([ASK, {**SAY, "reasoning": "a", "thinking": "b"}], "reasoning twice"),
        ([{**ASK, "reasoning": "a"}, SAY], "reasoning in the user's turn"),
        ([{**ASK, "tool_calls": [CALL]}, SAY], "`tool_calls` in the user's turn"),
        ([ASK, {**SAY, "tool_calls": 3}], "int 3 as `tool_calls`"),
        ([ASK, {**SAY, "tool_calls": [{"function": {"arguments": {}}}]}], r"at messages\[1\]\.tool_calls\[0\]"),
        ([ASK, {**SAY, "tool_calls": [{"name": "f", "arguments": 3}]}], "int 3 as arguments"),
        ([ASK, {**SAY, "tool_calls": [CALL], "function_call": CALL["function"]}], "`tool_calls` and `function_call`"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, SAY],
            r"part of type 'image_url' .*messages\[0\], part 0",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, SAY], "'input_audio'"),
        ([{"role": "user", "content": None}, SAY], "NoneType null as content"),
        ([], "empty list in 'messages'"),
        ([SAY], "begins with the assistant"),
        ([SAY, ASK, SAY], "begins with the assistant: messages.0. has an empty prompt.*Remove that message"),
    ],
)
def test_a_message_that_cannot_be_meant_is_named(messages: list[Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        to_demonstration(row(messages=messages))
    assert str(raised.value).startswith("f.jsonl:7 ")


def test_the_remedies_for_a_conversation_that_begins_with_the_assistant_work(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for turns in ([ASK, SAY], [{**SAY, "train": False}, ASK, SAY], [ASK, SAY, ASK, SAY]):
        assert texts(tokenizer, CHATML, messages=turns)[1] == "yes<|end|>"


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (
            MISTRAL,
            [ASK, ASK, SAY],
            "roles user, user, assistant: .*must alternate.*Messages 0 and 1 are both the user's",
        ),
        (MISTRAL, [{"role": "system", "content": "x"}, ASK, SAY], "System role not supported. Put what the system"),
        (MISTRAL, [{**SAY, "train": False}, ASK, SAY], "Its first turn, message 0, is the assistant's"),
        (MISTRAL, [ASK, {**SAY, "content": "", "tool_calls": [{**CALL, "id": "c1"}]}], "A call, .* has 'c1'"),
        (LLAMA, [ASK, {**SAY, "tool_calls": [CALL, CALL]}], "single tool-calls.*Message 1 calls 2 tools"),
    ],
)
def test_what_a_template_refuses_is_explained(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: list[Any], says: str
) -> None:
    for read in (tokenize_example, tokenize_prompt):
        example = to_demonstration(row(messages=messages)) if read is tokenize_example else None
        if example is None:
            continue
        with pytest.raises(
            InputError, match=rf"f\.jsonl:7: the chat template refuses the {says}" if says[:5] == "roles" else says
        ):
            read(example, tokenizer, template)


@pytest.mark.parametrize("calls", [False, True])
def test_the_remedy_for_turns_without_an_end_works(calls: bool) -> None:
    """Tags that end a tool call are tokens of such tokenizers, and no end of turns."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "</think>"])
    turns = [{**turn, "weight": 1} if turn["role"] == "assistant" else turn for turn in WITH_TOOLS]
    if not calls:
        turns = [ASK, SAY, ASK, {**SAY, "content": "<think>hm</think>"}]
    example = to_demonstration(row(messages=turns, tools=TOOLS))
    with pytest.raises(InputError, match=r"Put \{\{ eos_token \}\} at the end of all that") as raised:
        tokenize_example(example, tokenizer, GLM)
    assert ("after the tool calls" in str(raised.value)) == calls
    assert "end_of_turn" not in str(raised.value)
    end = "    {%- elif message.role == 'tool' %}"
    mended = GLM.replace(end, "        {{- eos_token }}\n" + end)
    result = tokenize_example(example, tokenizer, mended)
    learnt = tokenizer.decode([token for token, acted in zip(result.tokens, result.mask, strict=True) if acted])
    assert learnt.count("<|end|>") == sum(turn["role"] == "assistant" for turn in turns)
    assert ("</tool_call><|end|>" in learnt) == calls
    assert learnt.endswith("<|end|>")


def test_what_the_template_leaves_out_is_said_once_with_counts(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    unused = {"tools": TOOLS, "documents": [{"title": "a", "text": "b"}], "chat_template_kwargs": {"mood": "calm"}}
    rows = [
        {"messages": [ASK, SAY]},
        {"messages": [{**ASK, "name": "Ann", "time": "12:00"}, SAY], **unused},
        {"messages": [{**ASK, "name": "Ann"}, SAY], **unused},
        {"messages": [ASK, {**SAY, "reasoning_content": "a", "train": False}, ASK, SAY]},
    ]
    file = write_rows(rows)
    expected = [
        "leaves out `tools` (2 rows, first {0}:2)",
        "leaves out `documents` (2 rows, first {0}:2)",
        "does not read 'mood' of `chat_template_kwargs` (2 rows, first {0}:2)",
        "leaves out the key 'name' of messages (2 rows, first {0}:2)",
        "leaves out the key 'time' of messages (1 row, first {0}:2)",
        "leaves out the reasoning of earlier turns (1 row, first {0}:4)",
    ]
    expected = [line.format(file) for line in expected]
    notes = tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, CHATML)).report.notes
    assert [note.removeprefix("the chat template ").rstrip(".") for note in notes] == expected
    with caplog.at_level(logging.WARNING):
        PromptSet.load(file, tokenizer, chat_template=CHATML)
    assert len(caplog.records) == len(expected)
    assert all(any(line in record.message for record in caplog.records) for line in expected)
    # A template that writes them all has nothing to say.
    uses = DOCUMENTS + "{% if mood or tools or messages[0].time %}{% endif %}"
    uses = uses.replace("message.content", "message.content ~ (tools or '') ~ (message.time or '')")
    used = tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, uses)).report.notes
    assert used == []


def test_contents_of_roles_that_a_template_does_not_know(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows
) -> None:
    file = write_rows([{"messages": [{"role": "system", "content": "Be brief."}, ASK, SAY]}])
    (note,) = tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, R1)).report.notes
    assert "the content of messages of role 'system'" in note
    # As JSON it is another text, and yet all there.
    file = write_rows([{"messages": [ASK, WITH_TOOLS[1], {"role": "tool", "content": 'a "b"'}, SAY]}])
    assert not tokenize_rows(open_rows(file), tokenizer, choose_format(tokenizer, LLAMA)).report.notes


def test_without_a_template_its_inputs_are_named(
    plain_tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_rows([{"prompt": "3+4?", "completion": "7", "tools": TOOLS}] * 2)
    notes = tokenize_rows(open_rows(file), plain_tokenizer, choose_format(plain_tokenizer)).report.notes
    assert notes == [f"there is no chat template, so `tools` is not used (2 rows, first {file}:1)."]


def test_tool_calls_in_parquet_read_as_in_json_lines(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Arrow gives the arguments of each call the keys of all others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for name, arguments in (("weather", {"city": "Rome"}), ("add", {"a": 1, "b": 2})):
        function = {"name": name, "arguments": arguments}
        turn = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
        rows.append({"messages": [ASK, turn], "tools": TOOLS})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = choose_format(tokenizer, QWEN3)
    parquet, lines = (
        tokenize_rows(open_rows(tmp_path / f"rows.{kind}"), tokenizer, form) for kind in ("parquet", "jsonl")
    )
    assert parquet.arrays["tokens"].tolist() == lines.arrays["tokens"].tolist()


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (SAY, "yes"),
        ({**SAY, "reasoning_content": "It greets."}, "<think>\nIt greets.\n</think>\n\nyes"),
        (
            {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [CALL]},
            "<think>\nLook.\n</think>\n\n\n"
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        ),
    ],
)
def test_verifiers_compare_with_the_text_that_repeats_the_demonstration(
    tokenizer: PreTrainedTokenizerFast, write_rows: WriteRows, turn: dict[str, Any], expected: str
) -> None:
    values = {"messages": [ASK, turn]}
    answer = texts(tokenizer, QWEN3, **values)[1].removesuffix("<|end|>")
    prompts = PromptSet.load(write_rows([values]), tokenizer, chat_template=QWEN3)
    assert prompts.metadata[0]["completion"] == expected
    if turn is not SAY:  # an empty thought is the template's, and no part of the row
        assert answer == expected
