"""Inputs of a chat template besides the messages: tools, documents, and variables such as ``enable_thinking``."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_lightning.data.messages import describe_value, parse_json, row_error, without_nulls
from dpr_lightning.data.rows import Row
from dpr_lightning.errors import InputError

TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")
RESERVED = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip
"""Names of variables that rendering sets."""


@dataclass(frozen=True, slots=True)
class TemplateInputs:
    """Inputs of the chat template from a row, besides its messages.

    Attributes:
        tools: definitions of the tools that the assistant may call; empty: none.
        documents: from which the assistant is to answer, ``{"title": …, "text": …}``; empty: none.
        variables: other variables of the template, by name.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Tools and documents as text, one a line."""
        documents = [" ".join(str(part) for part in document.values()) for document in self.documents]
        return "\n".join([json.dumps(tool, ensure_ascii=False) for tool in self.tools] + documents)


def read_template_inputs(row: Row, names: Mapping[str, str]) -> TemplateInputs:
    """The template's inputs in a row: lists and objects, or JSON of them; null and empty ones count as missing.

    Args:
        row: the row.
        names: the file's names of ``TEMPLATE_COLUMNS``.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    tools = _objects(row, names["tools"], "tool definitions") or older_functions(row)
    documents = _objects(row, names["documents"], "{title, text} objects")
    column = names["chat_template_kwargs"]
    variables = _value(row, column)
    if not variables:
        return TemplateInputs(tools, documents)
    if not isinstance(variables, Mapping):
        raise row_error(
            row, f"has {describe_value(variables)} in {column!r}", "It must be an object: {variable: value}."
        )
    return TemplateInputs(tools, documents, check_variables(without_nulls(variables), f"{row.location}, {column!r}"))


def check_variables(variables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check variables for a chat template, and return them.

    Args:
        variables: by name.
        where: row or option that sets them, for the error message.

    Raises:
        InputError: one of them is set by rendering.
    """
    for name in variables:
        if name in RESERVED or name.endswith("_token"):
            raise InputError(
                f"{where}: {name!r} is no variable to set here; rendering sets it. `tools` and `documents` are columns "
                "of a row, the template is `chat_template`, special tokens are the tokenizer's."
            )
    return dict(variables)


def reads_variable(template: str, name: str) -> bool:
    """Whether the name occurs anywhere in a chat template."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def with_defaults(template: str, variables: Mapping[str, Any]) -> str:
    """A chat template with default values for its variables.

    They are written into the template, so that every program that loads the policy's folder later renders alike. The
    ``chat_template_kwargs`` of a row take precedence.

    Args:
        template: in Jinja.
        variables: values of JSON's types, by name.

    Raises:
        InputError: the template does not read one of them.
    """
    check_variables(variables, "`chat_template_kwargs`")
    for name in variables:
        if not reads_variable(template, name):
            near = difflib.get_close_matches(name, set(re.findall(r"[A-Za-z_]\w+", template)), n=1, cutoff=0.7)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"`chat_template_kwargs` sets {name!r}, which the chat template does not read: it would change nothing."
                f"{meant}"
            )
    lines = "".join(
        f"{{% set {name} = {name} if {name} is defined else {_literal(name, value)} %}}"
        for name, value in sorted(variables.items())
    )
    # Jinja drops a newline after a block, and the template's first character may be one.
    return f"{lines}{{{{ '' }}}}{template}" if lines else template


def _value(row: Row, column: str) -> Any:
    value = row.values.get(column)
    return parse_json(row, value, repr(column)) if isinstance(value, str) else value


def _objects(row: Row, column: str, what: str) -> tuple[Mapping[str, Any], ...]:
    value = _value(row, column)
    if not value:
        return ()
    if not isinstance(value, Sequence) or not all(isinstance(entry, Mapping) for entry in value):
        raise row_error(
            row,
            f"has {describe_value(value)} in {column!r}, which chat templates read",
            f"It must be a list of {what}, or JSON of one; a column that means something else needs another name.",
        )
    return tuple(without_nulls(value))


def older_functions(row: Row) -> tuple[Mapping[str, Any], ...]:
    """Tools in OpenAI's older form, a column ``functions`` of definitions without a wrapper."""
    value = row.values.get("functions")
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) and entry.get("name") for entry in value):
        return ()
    return tuple({"type": "function", "function": without_nulls(entry)} for entry in value)


def _literal(name: str, value: Any) -> str:
    """A value as a Jinja literal."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_literal(name, str(key))}: {_literal(name, part)}" for key, part in value.items()) + "}"
        )
    if isinstance(value, Sequence):
        return "[" + ", ".join(_literal(name, part) for part in value) + "]"
    raise InputError(f"`chat_template_kwargs` sets {name!r} to {describe_value(value)}; values are those of JSON.")
