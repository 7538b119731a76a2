"""Which forms of messages a chat template supports, tested with a small conversation once for each template."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.messages import REASONING, Message
from dpr_lightning.data.template_inputs import TemplateInputs

VALUE = 'probe "value"'
ARGUMENTS = {"probe_key": VALUE}
TOOL = {
    "name": "probe_tool",
    "description": "Probe.",
    "parameters": {"type": "object", "properties": {"probe_key": {"type": "string", "description": "Probe."}}},
}
WRAPPED = {"type": "function", "function": TOOL}


@dataclass(frozen=True)
class TemplateTraits:
    """The forms of reasoning, roles, tool calls and contents that a chat template supports.

    Attributes:
        reasoning: the key under which it reads a message's reasoning; None: it reads none.
        roles: its names of roles that it does not know under ours.
        object_arguments: arguments of a tool call may be an object.
        text_arguments: they may be JSON text, which it renders like the object.
        omits_content: a turn that only calls tools must have no ``content`` at all.
        text_parts: contents must be lists of text parts, as in templates for images.
        wrapped_tools: tools must be ``{"type": "function", "function": …}``.
    """

    reasoning: str | None
    roles: Mapping[str, str]
    object_arguments: bool
    text_arguments: bool
    omits_content: bool
    text_parts: bool
    wrapped_tools: bool

    def message(self, message: Message) -> dict[str, Any]:
        """A message in the form that the template supports."""
        rendered: dict[str, Any] = {**message.fields, "role": self.roles.get(message.role, message.role)}
        parts = [{"type": "text", "text": message.content}]
        rendered["content"] = parts if self.text_parts else message.content
        if message.reasoning is not None:
            rendered[self.reasoning or REASONING[0]] = message.reasoning
        if message.tool_calls:
            rendered["tool_calls"] = [self._call(call) for call in message.tool_calls]
            if not message.content and self.omits_content:
                del rendered["content"]
        return rendered

    def inputs(self, inputs: TemplateInputs) -> dict[str, Any]:
        """The row's inputs as arguments of the template; empty ones are left out."""
        tools = [
            {"type": "function", "function": tool} if self.wrapped_tools and "function" not in tool else tool
            for tool in inputs.tools
        ]
        arguments: dict[str, Any] = dict(inputs.variables)
        if tools:
            arguments["tools"] = tools
        if inputs.documents:
            arguments["documents"] = list(inputs.documents)
        return arguments

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        arguments = function["arguments"]
        if isinstance(arguments, str) and not self.text_arguments and self.object_arguments:
            function["arguments"] = _parsed(arguments)
        elif isinstance(arguments, Mapping) and not self.object_arguments and self.text_arguments:
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": function}


@functools.lru_cache(maxsize=16)
def template_traits(tokenizer: PreTrainedTokenizerBase, template: str) -> TemplateTraits:
    """Find out what a template supports: by the names in it, and by rendering a small tool and a call of it."""

    def calls(arguments: Any, omit: bool) -> str:
        function = {"name": "probe_tool", "arguments": arguments}
        call = {"id": "probe0000", "type": "function", "function": function}
        turn = {"role": "assistant", "tool_calls": [call], **({} if omit else {"content": ""})}
        return _try(tokenizer, template, [{"role": "user", "content": "probe"}, turn], tools=[WRAPPED])

    text = json.dumps(ARGUMENTS)
    objects, texts = {}, {}
    for omit in (False, True):
        of_object, of_text = calls(ARGUMENTS, omit), calls(text, omit)
        objects[omit] = _has_object(of_object)
        texts[omit] = text in of_text and (of_text == of_object or not objects[omit])
    omits_content = not (objects[False] or texts[False]) and (objects[True] or texts[True])
    user = [{"role": "user", "content": "probe"}]
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
    as_text, as_parts = (_try(tokenizer, template, messages) for messages in (user, in_parts))
    bare, wrapped = ("probe_tool" in _try(tokenizer, template, user, tools=[tool]) for tool in (TOOL, WRAPPED))
    return TemplateTraits(
        reasoning=next((name for name in REASONING if _reads_key(template, name)), None),
        roles={
            ours: other
            for ours, other in (("developer", "system"), ("ipython", "tool"))
            if not re.search(rf"['\"]{ours}['\"]", template)
        },
        object_arguments=objects[omits_content],
        text_arguments=texts[omits_content],
        omits_content=omits_content,
        text_parts="probe" not in as_text and "probe" in as_parts and str(in_parts[0]["content"]) not in as_parts,
        wrapped_tools=wrapped and not bare,
    )


def _reads_key(template: str, name: str) -> bool:
    return re.search(rf"(\.|['\"]){name}\b", template) is not None


def _has_object(rendered: str) -> bool:
    """Whether a rendered text has the arguments of the call, and not as Python prints a dict."""
    return "probe_key" in rendered and str(ARGUMENTS) not in rendered


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _try(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Mapping[str, Any]], **inputs: Any
) -> str:
    """The rendered text, empty where the template refuses."""
    conversation = [dict(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **inputs))
    except Exception:  # a template is a foreign program: it may raise anything
        return ""
