"""The shapes of rows: chat messages, prompt and completion, ShareGPT, Alpaca, question and answer, marked text.

:func:`recognise` brings each of them into the canonical form, before anything else reads the row.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpr_lightning.data.chat_turns import form_of, has_roles, parsed_turns, repeats, standard, text_of
from dpr_lightning.data.loss_spans import LOSS_SPANS
from dpr_lightning.data.messages import describe_value, row_error
from dpr_lightning.data.row_columns import (
    CHOSEN,
    COMPLETIONS,
    CONTENT,
    HISTORY,
    INPUTS,
    JOIN,
    MEDIA,
    MESSAGES,
    PROMPTS,
    SYSTEMS,
    TEXT,
    TRAINING,
    TURNS,
    CanonicalRow,
    ColumnNames,
    as_option,
    check_columns,
    column_parts,
)
from dpr_lightning.data.row_context import with_history, with_system
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.template_inputs import TEMPLATE_COLUMNS, older_functions
from dpr_lightning.data.turn_markers import UnclearTurns, split_turns
from dpr_lightning.errors import InputError


def recognise(row: Row, columns: Mapping[str, str] | None = None) -> CanonicalRow:
    """Called first for every row: recognises its shape, and joins and renames its columns.

    Args:
        row: the row; a null value counts as missing.
        columns: the caller's names, which take precedence. ``a+b`` joins two columns by an empty line.

    Raises:
        InputError: no shape fits the row, or more than one does; it names the columns and how to choose.
    """
    return _Reader(_with_instance(row), check_columns(columns)).read()


def required(canonical: CanonicalRow, part: str, columns: Mapping[str, str] | None) -> Any:
    """A part of a row that the caller needs.

    Raises:
        InputError: the row has no such column.
    """
    if part not in canonical.columns:
        raise _missing(canonical.row, check_columns(columns), part)
    return canonical.parts[part]


class _Reader:
    """Brings one row into the canonical form."""

    def __init__(self, row: Row, names: ColumnNames) -> None:
        self.row = row
        self.names = names
        self.values = {key: value for key, value in row.values.items() if value is not None}
        self.mapped = {part for key in names.named for part in column_parts(names[key], row.values)}

    def read(self) -> CanonicalRow:
        """The canonical row."""
        for key in self._columns(MEDIA):
            if self.values[key] not in ("", [], {}):
                raise row_error(
                    self.row, f"has {key!r}", "Only text is learnt. Remove that column where the text alone is enough."
                )
        result = self._read()
        template = {name: (self.names[name],) for name in (LOSS_SPANS, *TEMPLATE_COLUMNS)}
        result = replace(result, columns={**result.columns, **template})
        unused = self._unused(result)
        read = result.used() | self.mapped | {self.names["answer"], self.names["metadata"], *unused}
        read |= {"functions"} if older_functions(self.row) else set()
        rest = tuple(key for key, value in self.values.items() if key not in read and value not in ("", [], {}))
        return replace(result, metadata=self._metadata(result), unused=unused, rest=rest)

    def _read(self) -> CanonicalRow:
        named = self.names.named
        if "messages" in named:
            if self.names["messages"] not in self.row.values:
                raise _missing(self.row, self.names, "messages")
            return self._conversation(self.names["messages"])
        if "prompt" in named:
            return self._pair(column_parts(self.names["prompt"], self.row.values))
        prompts = self._columns(PROMPTS)
        chats = self._distinct(self._columns(MESSAGES))
        turns = self.values.get(TURNS)
        if not chats and has_roles(turns):
            chats = [TURNS]
        if chats and not (prompts and "completion" in named):
            if len(chats) > 1:
                raise self._ambiguous([{"messages": key} for key in chats])
            self._check_one_reading(chats[0])
            return self._conversation(chats[0])
        if self._columns((CHOSEN,)) and not self._columns(("completion",)) and "completion" not in named:
            return self._preference(prompts)
        if prompts:
            return self._pair(self._prompt_columns(prompts))
        if turns is not None:
            return CanonicalRow(self.row, f"first of {TURNS}", {"prompt": (TURNS,)}, prompt=self._first_turn(turns))
        texts = self._columns((TEXT,))
        if texts:
            return self._marked_text(texts[0])
        raise _missing(self.row, self.names, "prompt")

    def _columns(self, aliases: Sequence[str]) -> list[str]:
        """The row's columns of these names, in upper or lower case, in the order of ``aliases``."""
        columns = [key for key in self.values if key.lower() in aliases and key not in self.mapped]
        return sorted(columns, key=lambda key: aliases.index(key.lower()))

    def _conversation(self, column: str) -> CanonicalRow:
        value = parsed_turns(self.row.values[column])
        form = form_of(value)
        shape = "" if column == "messages" and not form else f"messages ({column})"
        if form:
            shape = f"{'ShareGPT' if form == 'from/value' else 'messages'} ({column}/{form})"
        result = CanonicalRow(self.row, shape, {"messages": (column,)}, messages=standard(value))
        return with_system(result, self._columns(SYSTEMS))

    def _pair(self, prompt: tuple[str, ...]) -> CanonicalRow:
        """A prompt, with its completion where there is one."""
        if not all(column in self.row.values for column in prompt):
            raise _missing(self.row, self.names, "prompt")
        completion = self._completion_column(prompt)
        columns = {"prompt": prompt}
        kind = "prompts"
        if completion is not None:
            columns |= {"completion": (completion,)}
            kind = "Alpaca" if prompt[0].lower() == "instruction" else "prompt and completion"
        ours = prompt == ("prompt",) and completion in (None, "completion")
        shape = "" if ours else f"{kind} ({', '.join((*prompt, *columns.get('completion', ())))})"
        learnt = None if completion is None else standard(self.row.values[completion])
        result = CanonicalRow(self.row, shape, columns, prompt=self._joined(prompt), completion=learnt)
        return with_history(with_system(result, self._columns(SYSTEMS)), self._columns((HISTORY,)))

    def _joined(self, columns: tuple[str, ...]) -> Any:
        if len(columns) == 1:
            return standard(self.row.values[columns[0]])
        parts = {column: self.values[column] for column in columns if self.values.get(column) not in (None, "")}
        for column, part in parts.items():
            if not isinstance(part, str):
                raise row_error(
                    self.row, f"has {describe_value(part)} in {column!r}", "Columns that are joined must be texts."
                )
        return JOIN.join(parts.values())

    def _prompt_columns(self, prompts: list[str]) -> tuple[str, ...]:
        """The columns that make the prompt: one, or an instruction with its input."""
        inputs = self._columns(INPUTS)
        filled = [key for key in inputs if self.values[key] != ""]
        questions = self._distinct([key for key in prompts if key.lower() not in INPUTS])
        if "prompt" in questions:
            if self._columns(("completion",)):
                return ("prompt",)
            questions = ["prompt"]
        if not questions:
            if len(filled) > 1:
                raise self._ambiguous([{"prompt": "+".join(filled)}, {"prompt": prompts[0]}])
            return (prompts[0],)
        if len(questions) > 1:
            raise self._ambiguous([{"prompt": "+".join(questions)}, *({"prompt": key} for key in questions)])
        if questions[0].lower() == "instruction" and len(filled) < 2:
            return (*questions, *(filled or inputs))
        if filled:
            raise self._ambiguous([{"prompt": "+".join([*questions, *filled])}, {"prompt": questions[0]}])
        return (questions[0],)

    def _completion_column(self, prompt: tuple[str, ...]) -> str | None:
        if "completion" in self.names.named:
            if self.names["completion"] not in self.row.values:
                raise _missing(self.row, self.names, "completion")
            return self.names["completion"]
        if "completion" in self.row.values:
            return "completion"
        candidates = [key for key in self._columns(COMPLETIONS) if key not in prompt]
        texts = self._distinct([key for key in candidates if key.lower() != "answer"])
        if len(texts) > 1:
            raise self._ambiguous([{"prompt": "+".join(prompt), "completion": key} for key in texts])
        if texts or prompt == ("prompt",):
            return texts[0] if texts else None  # next to `prompt`, `answer` is the solution that verifiers compare with
        return candidates[0] if candidates else None

    def _preference(self, prompts: list[str]) -> CanonicalRow:
        """The chosen answer is the one to learn."""
        chosen_column = self._columns((CHOSEN,))[0]
        value = standard(parsed_turns(self.values[chosen_column]))
        prompt = self._prompt_columns(prompts) if prompts else ()
        shape = f"preferences ({', '.join((*prompt, chosen_column))})"
        whole = CanonicalRow(self.row, shape, {"messages": (chosen_column,)}, messages=value)
        if not prompt:
            return whole if isinstance(value, list) else replace(self._marked_text(chosen_column), shape=shape)
        query = self._joined(prompt)
        if has_roles(value) and value[0].get("role") != "assistant":
            if not repeats(query, text_of(value)):
                raise self._ambiguous(
                    [{"messages": chosen_column}, {"prompt": "+".join(prompt), "completion": chosen_column}]
                )
            return with_system(
                replace(whole, columns={"messages": (chosen_column,), "prompt": prompt}), self._columns(SYSTEMS)
            )
        columns = {"prompt": prompt, "completion": (chosen_column,)}
        return with_system(
            CanonicalRow(self.row, shape, columns, prompt=query, completion=value), self._columns(SYSTEMS)
        )

    def _marked_text(self, column: str) -> CanonicalRow:
        text = self.values[column]
        try:
            split = split_turns(text) if isinstance(text, str) else None
        except UnclearTurns as error:
            raise row_error(self.row, f"{error} in {column!r}", "Write the turns apart, as `messages`.") from error
        if split is None:
            raise row_error(
                self.row,
                f"has {column!r} without markers of turns, so that nothing tells the prompt from what is to be learnt",
                "Write the two apart, as `prompt` and `completion`, or the turns as `messages`.",
            )
        markers, turns = split
        return CanonicalRow(self.row, f"{column} with markers ({markers})", {"messages": (column,)}, messages=turns)

    def _first_turn(self, turns: Any) -> str:
        first = turns[0] if isinstance(turns, Sequence) and not isinstance(turns, str | bytes) and turns else None
        text = first.get("content") if isinstance(first, Mapping) else first
        if not isinstance(text, str):
            raise row_error(
                self.row,
                f"has {describe_value(turns)} as `{TURNS}`",
                "It must be a list of texts, or of {content} objects.",
            )
        return text

    def _check_one_reading(self, chat: str) -> None:
        """Check that a prompt and a completion only repeat the messages, which are then used instead.

        Raises:
            InputError: their texts differ from the messages.
        """
        texts = text_of(parsed_turns(self.values[chat]))
        for key in ("prompt", "completion"):
            value = self.values.get(key)
            if key not in self.mapped and isinstance(value, str) and not repeats(value, texts):
                other = {"prompt": "prompt" if "prompt" in self.values else chat}
                other |= {"completion": "completion"} if "completion" in self.values else {}
                raise self._ambiguous([{"messages": chat}, other])

    def _distinct(self, columns: list[str]) -> list[str]:
        """Columns without those that repeat an earlier one, and without empty ones unless all are empty."""
        distinct: list[str] = []
        for key in [key for key in columns if self.values[key] != ""] or columns:
            if self.values[key] not in [self.values[other] for other in distinct]:
                distinct.append(key)
        return distinct

    def _ambiguous(self, readings: list[dict[str, str]]) -> InputError:
        columns = dict.fromkeys(part for each in readings for name in each.values() for part in name.split("+"))
        return row_error(
            self.row,
            f"can be read in more than one way, by {', '.join(map(repr, columns))}",
            f"Choose {' or '.join(map(as_option, readings))}; a column left out is not learnt from.",
        )

    def _metadata(self, result: CanonicalRow) -> dict[str, Any]:
        """All other columns, the fields of a ``metadata`` column among them, and ``answer``."""
        names, values = self.names, self.row.values
        for_verifiers = {
            column for part in ("completion", *TEMPLATE_COLUMNS) for column in result.columns.get(part, ())
        }
        apart = (result.used() - for_verifiers) | {names["metadata"]}
        metadata = {name: value for name, value in values.items() if name not in apart}
        nested = values.get(names["metadata"])
        if isinstance(nested, Mapping):
            metadata |= nested
        elif nested is not None:
            metadata["metadata"] = nested
        answer = names["answer"]
        if "answer" in names.named:
            metadata.pop("answer", None)  # it belongs to something else
        if answer not in values and "answer" not in names.named:
            answer = next((key for key in values if key.lower() == "answer"), answer)
        if answer in values:
            metadata["answer"] = values[answer]
        return metadata

    def _unused(self, result: CanonicalRow) -> tuple[str, ...]:
        known = result.used() | self.mapped
        rest = [key for key, value in self.values.items() if key not in known and value not in ("", [], {})]
        rest = [key for key in rest if key.lower() in TRAINING or (key.lower() in CONTENT and key.lower() != "answer")]
        if not rest:
            return ()
        texts = text_of([result.messages, result.prompt, result.completion])
        return tuple(key for key in rest if key.lower() in TRAINING or not repeats(self.values[key], texts))


def _with_instance(row: Row) -> Row:
    """A seed task of Self-Instruct, whose input and output are one object in ``instances``, as an Alpaca row.

    Raises:
        InputError: it has several.
    """
    values = row.values
    instances = values.get("instances")
    if "instruction" not in values or "output" in values or not isinstance(instances, list) or not instances:
        return row
    if not all(isinstance(each, Mapping) and "output" in each for each in instances):
        return row
    if len(instances) > 1:
        raise row_error(
            row, f"has {len(instances)} `instances`", "Write each in a row with `instruction`, `input` and `output`."
        )
    rest = {key: value for key, value in values.items() if key != "instances"}
    return row._replace(values={**rest, **instances[0]})


def _missing(row: Row, names: ColumnNames, part: str) -> InputError:
    """The error for a row without a part, with the option ``columns`` that would set it.

    The option is only printed if it uses every text of the row.
    """
    name, keys = names[part], list(row.values)
    if name in keys:
        return row_error(row, f"has NoneType null in {name!r}", "")
    hint = f"Say with `columns` what the file calls the {part}; a plus sign joins two columns."
    if part in names.named:
        near = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
        hint = f"`columns` says {part}: {name}" + (f"; did you mean {near[0]!r}?" if near else ".")
    else:
        candidates = difflib.get_close_matches(part, keys, n=1, cutoff=0.6)
        candidates += [key for key in keys if part == "completion" and key.lower() == "answer"]
        for candidate in candidates:
            advice = {key: names[key] for key in sorted(names.named)} | {part: candidate}
            if _uses_all_text(row, advice):
                hint = f"Probably {candidate!r} is meant: set {as_option(advice)}."
                break
    return row_error(row, f"has no {name!r}; its keys are {', '.join(map(repr, keys[:12])) or 'none'}", hint)


def _uses_all_text(row: Row, columns: Mapping[str, str]) -> bool:
    try:
        result = recognise(row, columns)
    except InputError:
        return False
    used = result.used()
    texts = [key for key, value in row.values.items() if isinstance(value, str) and len(value.split()) > 1]
    return used.issuperset(texts) and CONTENT.isdisjoint(key.lower() for key in result.unused)
