"""Wrong files, rows, templates and verifiers, with words of the error messages."""

import gzip
import json
from typing import Any

from dpr_lightning.policies import (
    character_tokenizer,
    create_toy_policy,
)
from tests.reliability.kit import GOOD, Case, Kit
from tests.tiny import ALPHABET
from tests.workspace import write_rows

LONG = {"prompt": "1" * 40, "completion": "2"}
HOSTILE = '{"prompt": "' + "[" * 3 + '", "completion": ' + "[" * 100_000 + "]" * 100_000 + "}"
ASK, SAY = {"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}"
    "{% else %}\n{% endif %}{% endfor %}"
)
STRICT_TEMPLATE = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant.') }}{% endif %}{% endfor %}"
) + CHAT_TEMPLATE


def _chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def _evaluate(kit: Kit, *rows: dict[str, Any]) -> list[str]:
    path = write_rows(kit.folder / "data.jsonl", list(rows))
    return ["evaluate", "--policy", kit.workspace.sft, "--prompts", path, "--verifier", "answer"]


def _empty_folder(kit: Kit) -> str:
    (kit.folder / "rows").mkdir()
    return str(kit.folder / "rows")


def _other_tokenizer(kit: Kit) -> list[str]:
    other = create_toy_policy(kit.folder / "other", ["zyx 0123456789+=Answer:"], hidden_size=32, layers=1, heads=2)
    return kit.dpr(references=[str(other)])


def _larger_tokenizer(kit: Kit) -> list[str]:
    character_tokenizer([ALPHABET, *map(chr, range(0x4E00, 0x4F00))]).save_pretrained(kit.folder / "tokenizer")
    return kit.fit(policy={"source": kit.workspace.sft, "tokenizer": str(kit.folder / "tokenizer")})


def _prompt_of_eos(kit: Kit) -> list[str]:
    return kit.rows(GOOD, {"prompt": "<eos>", "completion": "2"}, special_tokens_in_text="tokens")


def _file_named_twice(kit: Kit) -> list[str]:
    return kit.fit([kit.workspace.demonstrations, {"path": kit.workspace.demonstrations}])


def _weight_of_zero(kit: Kit) -> list[str]:
    return kit.fit([{"path": kit.workspace.demonstrations, "weight": 0.0}])


def _folder_of_splits(kit: Kit) -> list[str]:
    folder = kit.folder / "rows"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps(GOOD) + "\n")
    return kit.fit(str(folder))


DATA_CASES: dict[str, dict[str, Case]] = {
    "Files": {
        "a file that is not there": Case(lambda kit: kit.fit(kit.workspace.prompts + "l"), ("prompts.jsonl",)),
        "a folder that is not there": Case(lambda kit: kit.fit(str(kit.folder / "dta" / "a.jsonl")), ("dta",)),
        "a path through a file": Case(lambda kit: kit.fit(kit.workspace.prompts + "/a.jsonl"), ("prompts.jsonl",)),
        "an empty file": Case(lambda kit: kit.bytes(b""), ("data.jsonl", "empty")),
        "only blank lines": Case(lambda kit: kit.bytes(b"\n\n \n"), ("data.jsonl", "no rows")),
        "an unknown kind of file": Case(lambda kit: kit.bytes(b"a,b\n", "data.txt"), (".txt", ".jsonl")),
        "a compressed file cut short": Case(
            lambda kit: kit.bytes(gzip.compress(b"{}\n" * 9)[:-9], "data.jsonl.gz"), ("data.jsonl.gz", "damaged")
        ),
        "a row of a table with a cell too many": Case(
            lambda kit: kit.bytes(b"prompt,completion\na,b\na,b,c\n", "data.csv"), ("data.csv:3", "3 cells")
        ),
        "a pattern that matches no file": Case(lambda kit: kit.fit(str(kit.folder / "*.jsonl")), ("No file matches",)),
        "a file that is named twice": Case(_file_named_twice, ("named 2 times", "weight: 2")),
        "a weight of 0": Case(_weight_of_zero, ("weight", "0.0")),
        "a folder of training and test files": Case(_folder_of_splits, ("splits", "train*", "test*")),
        "text that says it is Parquet": Case(lambda kit: kit.bytes(b"{}", "data.parquet"), ("data.parquet",)),
        "a JSON array cut short": Case(lambda kit: kit.bytes(b'[{"prompt": "1"}, ', "d.json"), ("d.json", "JSON")),
        "an empty JSON array": Case(lambda kit: kit.bytes(b"[]", "d.json"), ("d.json", "no rows")),
        "a folder without a data set": Case(lambda kit: kit.fit(_empty_folder(kit)), ("folder", "save_to_disk")),
    },
    "Encodings": {
        "UTF-16": Case(lambda kit: kit.bytes(json.dumps(GOOD).encode("utf-16")), ("UTF-16", "UTF-8")),
        "Latin-1": Case(lambda kit: kit.bytes('{"prompt": "Müller"}'.encode("latin-1")), ("data.jsonl:1", "0xfc")),
        "a NUL byte": Case(lambda kit: kit.bytes(b'{"prompt": "1\x00"}\n'), ("data.jsonl:1", "NUL")),
        "half a surrogate pair": Case(
            lambda kit: kit.rows(GOOD, '{"prompt": "\\ud83d", "completion": "2"}'), ("data.jsonl:2", "surrogate")
        ),
    },
    "Rows": {
        "a line cut short": Case(lambda kit: kit.rows(GOOD, '{"prompt": "1", '), ("data.jsonl:2", "JSON")),
        "a row that is a list": Case(lambda kit: kit.rows(GOOD, "[1, 2]"), ("data.jsonl:2", "list")),
        "a row nested 100,000 deep": Case(lambda kit: kit.rows(GOOD, HOSTILE), ("data.jsonl:2", "deep")),
        "a number of 5,000 digits": Case(
            lambda kit: kit.rows(GOOD, '{"prompt": "1", "completion": "2", "n": ' + "1" * 5000 + "}"), ("data.jsonl:2",)
        ),
        "a question with a context apart": Case(
            lambda kit: kit.rows({"question": "1 +", "context": "sums", "answer": "2"}),
            ("data.jsonl:1", "columns: {prompt: question+context}"),
        ),
        "a text without markers of turns": Case(
            lambda kit: kit.rows({"text": "1 + 1 = 2"}), ("data.jsonl:1", "without markers", "`completion`")
        ),
        "a part not learnt, outside the completion": Case(
            lambda kit: kit.rows(GOOD | {"loss_spans": [{"start": 5, "end": 50}]}), ("data.jsonl:1", "5 to 50", "has 9")
        ),
        "a part not learnt whose text has changed": Case(
            lambda kit: kit.rows(GOOD | {"loss_spans": [{"start": 8, "end": 9, "text": "3"}]}),
            ("data.jsonl:1", "'3'", "has '2'"),
        ),
        "a part of negative weight": Case(
            lambda kit: kit.rows(GOOD | {"loss_spans": [{"start": 8, "end": 9, "weight": -1}]}),
            ("data.jsonl:1", "weight", "from 0"),
        ),
        "rows with images": Case(lambda kit: kit.rows(GOOD | {"images": ["a.png"]}), ("data.jsonl:1", "images")),
        "other names for the columns": Case(
            lambda kit: kit.rows({"frage": "1", "antwort": "2"}), ("data.jsonl:1", "frage", "columns")
        ),
        "a prompt that is a number": Case(
            lambda kit: kit.rows({"prompt": 3, "completion": "2"}), ("data.jsonl:1", "3")
        ),
        "a completion that is null": Case(
            lambda kit: kit.rows(GOOD, {"prompt": "1", "completion": None}), ("data.jsonl:2", "completion")
        ),
        "an empty completion": Case(
            lambda kit: kit.rows(GOOD, {"prompt": "1", "completion": ""}), ("data.jsonl:2", "completion")
        ),
        "an empty prompt": Case(
            lambda kit: kit.rows(GOOD, {"prompt": " ", "completion": "2"}), ("data.jsonl:2", "prompt")
        ),
        "a conversation that begins with the assistant": Case(
            lambda kit: kit.rows(_chat(SAY, ASK, SAY)), ("data.jsonl:1", "begins with the assistant")
        ),
        "an image in a message": Case(
            lambda kit: kit.rows(_chat({**ASK, "content": [{"type": "image", "image": "a.png"}]}, SAY)),
            ("data.jsonl:1", "'image'", "messages[0]", "text alone"),
        ),
        "a turn that counts by half": Case(
            lambda kit: kit.rows(_chat(ASK, {**SAY, "weight": 0.5})), ("data.jsonl:1", "0.5 as `weight`")
        ),
        "tools that are no list": Case(
            lambda kit: kit.rows(_chat(ASK, SAY) | {"tools": "add"}), ("data.jsonl:1", "'tools'", "no JSON")
        ),
        "no messages": Case(lambda kit: kit.rows({"messages": []}), ("data.jsonl:1", "empty list")),
        "an unknown role": Case(
            lambda kit: kit.rows({"messages": [{"role": "usr", "content": "a"}]}), ("data.jsonl:1", "usr", "user")
        ),
        "a message without content": Case(
            lambda kit: kit.rows({"messages": [{"role": "user"}]}), ("data.jsonl:1", "content")
        ),
        "a giant row": Case(
            lambda kit: kit.rows(GOOD, {"prompt": "1" * 1_000_000, "completion": "2"}), ("data.jsonl:2", "max_length")
        ),
        "an answer that is cut off whole": Case(
            lambda kit: kit.rows(GOOD, LONG, max_length=20, over_length="truncate"), ("data.jsonl:2", "max_length")
        ),
        "a prompt that is the EOS token": Case(_prompt_of_eos, ("data.jsonl:2", "<eos>")),
        "one prompt in training and evaluation": Case(
            lambda kit: kit.dpr(evaluation=kit.workspace.prompts), ("share", "allow_overlap")
        ),
        "a completion with the EOS token in it": Case(
            lambda kit: kit.rows(GOOD, {"prompt": "1", "completion": "2<eos>3"}, special_tokens_in_text="tokens"),
            ("data.jsonl:2", "<eos>"),
        ),
        "a special token in a text, refused": Case(
            lambda kit: kit.rows(GOOD, {"prompt": "1<pad>", "completion": "2"}, special_tokens_in_text="error"),
            ("data.jsonl:2", "<pad>", "special_tokens_in_text"),
        ),
        "characters that the tokenizer does not have": Case(
            lambda kit: kit.rows({"prompt": "1", "completion": "2 é"}), ("data.jsonl", "'é'", "max_unknown")
        ),
    },
    "Tokens and templates": {
        "reasoning that the template drops": Case(
            lambda kit: kit.rows(_chat(ASK, {**SAY, "reasoning_content": "1 + 1"}), chat_template=CHAT_TEMPLATE),
            ("data.jsonl:1", "leaves out", "reasoning_content", "data.on_dropped: warn"),
        ),
        "roles that the template refuses": Case(
            lambda kit: kit.rows(_chat(ASK, ASK, SAY), chat_template=STRICT_TEMPLATE),
            ("data.jsonl:1", "must alternate", "Messages 0 and 1 are both the user's"),
        ),
        "a variable that the template does not read": Case(
            lambda kit: kit.rows(
                _chat(ASK, SAY), chat_template=CHAT_TEMPLATE, chat_template_kwargs={"enable_thinking": False}
            ),
            ("`data.chat_template_kwargs`", "'enable_thinking'"),
        ),
        "a pad token that is no token": Case(
            lambda kit: kit.fit(policy={"source": kit.workspace.sft, "pad_token": "<nothing>"}),
            ("model.policy.pad_token", "'<nothing>'", "'<pad>'"),
        ),
        "an end of turn that is no token": Case(lambda kit: kit.fit(end_of_turn="<|im_end|>"), ("<|im_end|>",)),
        "a chat template that is no Jinja": Case(lambda kit: kit.fit(chat_template="{% for m in"), ("template",)),
        "a chat template that fails": Case(
            lambda kit: kit.fit(chat_template="{{ raise_exception('no system turns') }}"), ("no system turns",)
        ),
        "a chat template that reaches for Python": Case(
            lambda kit: kit.fit(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"), ("template",)
        ),
        "messages, and no template": Case(
            lambda kit: kit.rows(
                {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}
            ),
            ("template",),
        ),
        "policy and reference with other tokens": Case(_other_tokenizer, ("tokenizer", "differ", "token")),
        "a tokenizer with more tokens than the model": Case(_larger_tokenizer, ("tokens", "tokenizer")),
    },
    "Verifiers": {
        "an answer that is null": Case(
            lambda kit: _evaluate(kit, {"prompt": "1 + 1 =", "answer": None}, {"prompt": "1 + 2 =", "answer": "3"}),
            ("data.jsonl:1", "`answer` is null"),
        ),
        "answers that are lists": Case(
            lambda kit: _evaluate(kit, {"prompt": "1 + 1 =", "answer": ["2"]}, {"prompt": "1 + 2 =", "answer": ["3"]}),
            ("data.jsonl:1", 'list ["2"]', "2 of 2 rows"),
        ),
        "no answer to learn from": Case(
            lambda kit: kit.dpr(
                prompts=write_rows(kit.folder / "data.jsonl", [GOOD] * 4),
                verifier="dpr_lightning.evaluation.verifiers.answer",
            ),
            ("data.jsonl:1", "`answer` needs the field 'answer'", "4 of 4 rows"),
        ),
        "a name where a path is needed": Case(
            lambda kit: kit.dpr(verifier="numeric"),
            ("data.verifier", "'numeric' is no import path. Write dpr_lightning.evaluation.verifiers.numeric."),
        ),
        "a fraction as a number": Case(
            lambda kit: kit.dpr(
                prompts=write_rows(kit.folder / "data.jsonl", [{"prompt": "1 : 2 =", "answer": "1/2"}] * 4),
                verifier="dpr_lightning.evaluation.verifiers.numeric",
            ),
            ("data.jsonl:1", "only its last number, 2, would be compared", "4 of 4 rows"),
        ),
    },
}
