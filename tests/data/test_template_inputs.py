"""Tools, tool calls, documents and variables of rows reach the chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import open_rows, to_demonstration, to_prompt
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.template_inputs import with_defaults
from dpr_lightning.data.tokenized import tokenize_rows
from dpr_lightning.errors import InputError
from tests.data.conftest import make_tokenizer
from tests.data.template_kit import ASK, SAY, TOOLS, WITH_TOOLS, rendered, row, texts
from tests.data.templates import CHATML, DOCUMENTS, LLAMA, MISTRAL, QWEN3, R1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


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
