"""Wrong inputs of every kind, and what `dpr` says to each. Writes the table of docs/reliability.md:

python -m tests.reliability.bad_inputs docs/reliability.md
"""

import gzip
import json
import pickle
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from dpr_lightning.locking import LOCK
from dpr_lightning.policies import (
    LoraSpec,
    PolicySpec,
    build_policy,
    character_tokenizer,
    create_toy_policy,
    save_policy,
)
from tests.reliability.kit import Answer, Case, Kit, said_to
from tests.tiny import ALPHABET
from tests.workspace import make_workspace, write_rows

CALLBACKS = "lightning.pytorch.callbacks."
GOOD = {"prompt": "1 + 1 =", "completion": "Answer: 2"}
LONG = {"prompt": "1" * 40, "completion": "2"}
HOSTILE = '{"prompt": "' + "[" * 3 + '", "completion": ' + "[" * 100_000 + "]" * 100_000 + "}"
BEGIN, END = "<!-- bad inputs: written by tests/reliability/bad_inputs.py -->", "<!-- end of bad inputs -->"

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


def _without(kit: Kit, pattern: str) -> list[str]:
    folder = kit.policy()
    for path in folder.glob(pattern):
        path.unlink()
    return kit.fit(policy={"source": str(folder)})


def _run_without_curves(kit: Kit) -> list[str]:
    (kit.folder / "metrics.csv").write_text("data/train/rows,step\n40,0\n")
    return ["report", "--run", str(kit.folder)]


def _truncated_weights(kit: Kit) -> list[str]:
    folder = kit.policy()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return kit.fit(policy={"source": str(folder)})


def _empty_folder(kit: Kit) -> str:
    (kit.folder / "rows").mkdir()
    return str(kit.folder / "rows")


def _foreign_folder(kit: Kit) -> Path:
    (kit.folder / "book").mkdir()
    (kit.folder / "book" / "thesis.tex").write_text("")
    return kit.folder / "book"


def _references(kit: Kit, source: str, folder: Path) -> list[str]:
    callback = {"class_path": "dpr_lightning.callbacks.ReferenceCheckpoints", "init_args": {"folder": str(folder)}}
    return kit.fit(policy={"source": source}, trainer={"callbacks": [callback]})


def _export(kit: Kit, source: str, output: Path) -> list[str]:
    return ["export", "--source", source, "--output", str(output)]


def _generate(kit: Kit) -> list[str]:
    prompts = write_rows(kit.folder / "p.jsonl", [GOOD])
    return ["generate", "--policy", kit.workspace.sft, "--prompts", prompts, "--output"]


def _locked(kit: Kit) -> list[str]:
    (kit.folder / "run").mkdir()
    owner = {"pid": 7, "host": "node3", "since": "2031-01-01T09:00:00+01:00", "command": "dpr fit --config sft.yaml"}
    (kit.folder / "run" / LOCK).write_text(json.dumps(owner))
    return _references(kit, kit.workspace.sft, kit.folder / "run")


def _edited_json(kit: Kit, name: str, **values: Any) -> list[str]:
    folder = kit.policy()
    held = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(held | values))
    return kit.fit(policy={"source": str(folder)})


def _missing_weight(kit: Kit) -> list[str]:
    folder = kit.policy()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return kit.fit(policy={"source": str(folder)})


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import pathlib; pathlib.Path('pwned').touch()",)


def _pickled_weights(kit: Kit) -> list[str]:
    folder = kit.policy()
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _RunsCode()}, folder / "pytorch_model.bin")
    return kit.fit(policy={"source": str(folder)})


def _foreign_code(kit: Kit) -> list[str]:
    folder = kit.policy()
    (folder / "own.py").write_text("raise SystemExit('this code ran')\n")
    held = json.loads((folder / "config.json").read_text())
    held |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(held))
    return kit.fit(policy={"source": str(folder)})


def _adapter(kit: Kit, hidden_size: int) -> Path:
    base = create_toy_policy(kit.folder / "base", ["1 + =Answer:2"], hidden_size=hidden_size, layers=2, heads=2)
    spec = PolicySpec(source=str(base), lora=LoraSpec(rank=2))
    return save_policy(*build_policy(spec), kit.folder / "adapter", spec)


def _adapter_of_another_base(kit: Kit) -> list[str]:
    adapter = _adapter(kit, hidden_size=16)
    return kit.fit(policy={"source": kit.workspace.sft, "checkpoint": str(adapter), "lora": {"rank": 2}})


def _adapter_with(kit: Kit, **config: Any) -> list[str]:
    adapter = _adapter(kit, hidden_size=16)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return kit.fit(policy={"source": str(adapter), "lora": {"rank": 2}})


def _adapter_without_a_base(kit: Kit) -> list[str]:
    adapter = _adapter(kit, hidden_size=16)
    shutil.rmtree(kit.folder / "base")
    return kit.fit(policy={"source": str(adapter)})


def _checkpoint(kit: Kit, content: Any) -> list[str]:
    torch.save(content, kit.folder / "state.ckpt")
    return kit.fit(policy={"source": kit.workspace.sft, "checkpoint": str(kit.folder / "state.ckpt")})


def _checkpoint_with_code(kit: Kit) -> list[str]:
    (kit.folder / "state.ckpt").write_bytes(pickle.dumps({"state_dict": _RunsCode()}))
    return kit.fit(policy={"source": kit.workspace.sft, "checkpoint": str(kit.folder / "state.ckpt")})


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


def _same_twice(kit: Kit) -> list[str]:
    return kit.config("model:\n  class_path: dpr_lightning.modules.SupervisedIRL\nmodel: 3\n")


def _monitored(kit: Kit, callback: str, name: str) -> list[str]:
    entry = {"class_path": f"{CALLBACKS}{callback}", "init_args": {"monitor": name}}
    return kit.fit(trainer={"callbacks": [entry], "enable_checkpointing": True})


def _kind(kit: Kit, kind: str) -> str:
    """A copy of the policy whose config.json is that of another kind of model."""
    folder = kit.policy()
    AutoConfig.for_model(kind).save_pretrained(folder)
    return str(folder)


def _settings(kit: Kit, **settings: Any) -> list[str]:
    """An SFT config with other entries at its top."""
    path = Path(kit.fit()[-1])
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return ["fit", "--config", str(path)]


CASES: dict[str, dict[str, Case]] = {
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
    "Policies": {
        "an encoder": Case(lambda kit: kit.fit(policy={"source": _kind(kit, "bert")}), ("not causal", "is_decoder")),
        "an encoder-decoder": Case(lambda kit: kit.fit(policy={"source": _kind(kit, "t5")}), ("encoder-decoder", "t5")),
        "attention that is not installed": Case(
            lambda kit: kit.fit(policy={"source": kit.workspace.sft, "attention": "flash_attention_2"}),
            ("`model.policy.attention: flash_attention_2`", "Leave"),
        ),
        "a folder of policies": Case(
            lambda kit: kit.fit(policy={"source": str(Path(kit.workspace.sft).parent)}), ("Name one of these",)
        ),
        "a folder without weights": Case(lambda kit: _without(kit, "*.safetensors"), ("policy",)),
        "a folder without a tokenizer": Case(lambda kit: _without(kit, "tokenizer*"), ("policy", "tokenizer")),
        "weights cut short": Case(_truncated_weights, ("policy",)),
        "weights of another shape": Case(
            lambda kit: _edited_json(kit, "config.json", intermediate_size=96), ("policy", "down_proj")
        ),
        "weights of more layers than there are": Case(
            lambda kit: _edited_json(kit, "config.json", num_hidden_layers=3), ("policy", "layers.2")
        ),
        "a weight that is missing": Case(_missing_weight, ("policy", "up_proj")),
        "an unknown architecture": Case(lambda kit: _edited_json(kit, "config.json", model_type="lama"), ("lama",)),
        "pickled weights that run code": Case(_pickled_weights, ("policy",)),
        "a model with code of its own": Case(_foreign_code, ("trust_remote_code",)),
        "an adapter of another base": Case(_adapter_of_another_base, ("adapter", "base")),
        "an adapter whose base is gone": Case(_adapter_without_a_base, ("base",)),
        "an adapter of virtual tokens": Case(
            lambda kit: _adapter_with(kit, peft_type="PROMPT_TUNING"), ("PROMPT_TUNING", "merged")
        ),
        "an adapter for another task": Case(lambda kit: _adapter_with(kit, task_type="SEQ_CLS"), ("SEQ_CLS",)),
        "a checkpoint of another architecture": Case(
            lambda kit: _checkpoint(kit, {"state_dict": {"policy.lstm.weight": torch.ones(1)}}), ("lstm.weight",)
        ),
        "a checkpoint of other sizes": Case(
            lambda kit: _checkpoint(kit, {"state_dict": {"policy.model.norm.weight": torch.ones(3)}}), ("norm.weight",)
        ),
        "a checkpoint that is none": Case(lambda kit: _checkpoint(kit, [1, 2]), ("state.ckpt",)),
        "a checkpoint that runs code": Case(_checkpoint_with_code, ("state.ckpt",)),
        "a checkpoint that is not there": Case(
            lambda kit: [*kit.fit(), "--ckpt_path", str(kit.folder / "nowhere.ckpt")], ("nowhere.ckpt",)
        ),
        "a reference that is π_SFT itself": Case(
            lambda kit: kit.dpr(references=[kit.workspace.sft]), ("reference", "earlier")
        ),
        "a policy that is not π_SFT": Case(
            lambda kit: kit.dpr(policy=kit.workspace.reference), ("does not start as π_SFT", "check_start")
        ),
    },
    "Outputs": {
        "a policy that would be replaced by what is trained on it": Case(
            lambda kit: _references(kit, str(kit.policy().rename(kit.folder / "final")), kit.folder),
            ("final", "`ReferenceCheckpoints.folder`", "`model.policy.source`"),
        ),
        "an export over its source": Case(
            lambda kit: _export(kit, str(kit.policy()), kit.folder / "policy"), ("`output`", "`source`")
        ),
        "answers over their prompts": Case(
            lambda kit: [*_generate(kit), str(kit.folder / "p.jsonl")], ("`output`", "`prompts`")
        ),
        "an export over a folder of something else": Case(
            lambda kit: _export(kit, kit.workspace.sft, _foreign_folder(kit)), ("thesis.tex", "did not write")
        ),
        "a folder that another run writes": Case(_locked, ("process 7 on node3", "since 2031", "delete")),
    },
    "Configs and options": {
        "a command that is not there": Case(lambda kit: ["quickstrat"], ("quickstrat", "quickstart")),
        "no option that is needed": Case(lambda kit: ["generate"], ("policy",)),
        "a config that is not there": Case(lambda kit: ["fit", "--config", "nowhere.yaml"], ("nowhere.yaml",)),
        "a config that is no YAML": Case(lambda kit: kit.config("model: [1,"), ("run.yaml",)),
        "a config that makes Python objects": Case(
            lambda kit: kit.config("model: !!python/object/apply:os.system ['touch pwned']"), ("run.yaml",)
        ),
        "an empty config": Case(lambda kit: kit.config(""), ("run.yaml", "empty")),
        "a config that is a list": Case(lambda kit: kit.config("- model\n"), ("run.yaml", "mapping")),
        "an option twice": Case(_same_twice, ("run.yaml:3", "line 1")),
        "a misspelt option": Case(lambda kit: kit.dpr(promts_per_rollout=4), ("promts_per_rollout",)),
        "a misspelt entry": Case(lambda kit: _settings(kit, modle={"x": 1}), ("modle",)),
        "a word where a number belongs": Case(lambda kit: kit.fit(batch_size="four"), ("batch_size", "four")),
        "a class that is not there": Case(
            lambda kit: _settings(kit, model={"class_path": "dpr_lightning.modules.SupervisdIRL"}), ("SupervisdIRL",)
        ),
        "no rows in a batch": Case(lambda kit: kit.fit(batch_size=0), ("batch_size", "0")),
        "a validation share of 3": Case(lambda kit: kit.fit(validation=3.0), ("validation", "3.0")),
        "an unknown loss": Case(lambda kit: kit.fit(model={"loss": "sfft"}), ("sfft",)),
        "an unknown form of the reward": Case(lambda kit: kit.dpr(reward={"form": "log_ration"}), ("log_ration",)),
        "options that contradict each other": Case(
            lambda kit: kit.dpr(model={"estimator": "all_actions", "credit": {"level": "sentence"}}), ("all-actions",)
        ),
        "sampling that is off-policy": Case(
            lambda kit: kit.dpr(sampling={"max_new_tokens": 6, "temperature": 0.3}), ("sampler", "temperature")
        ),
        "a temperature below 0": Case(lambda kit: kit.dpr(sampling={"temperature": -1.0}), ("temperature", "-1")),
        "more prompts than there are": Case(
            lambda kit: kit.dpr(prompts_per_rollout=64), ("16 prompts", "prompts_per_rollout")
        ),
        "no reference": Case(lambda kit: kit.dpr(references=[]), ("reference",)),
        "an unknown optimizer option": Case(
            lambda kit: kit.fit(
                model={"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"learning_rate": 1}}}
            ),
            ("learning_rate",),
        ),
        "an unknown strategy": Case(lambda kit: kit.fit(trainer={"strategy": "deepspead"}), ("deepspead",)),
        "a GPU that is not there": Case(lambda kit: kit.fit(trainer={"accelerator": "gpu"}), ("gpu",)),
        "an unknown precision": Case(lambda kit: kit.fit(trainer={"precision": "8-mixed"}), ("8-mixed",)),
        "a misspelt option on the command line": Case(
            lambda kit: [*kit.fit(), "--trainer.max_step", "3"], ("--trainer.max_step.", "--trainer.max_steps?")
        ),
        "a misspelt option of a class": Case(
            lambda kit: [*kit.fit(), "--model.polcy.source", "x"], ("--model.polcy.source.", "--model.policy.source?")
        ),
        "a misspelt option of another command": Case(
            lambda kit: ["generate", "--policy", kit.workspace.sft, "--prompt", "x"], ("--prompt.", "--prompts?")
        ),
        "a misspelt option of a callback": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}EarlyStopping", "--trainer.callbacks.monitr=x"],
            ("trainer.callbacks", "'monitr'", "'monitor'"),
        ),
        "a callback without what it needs": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}EarlyStopping"], ("trainer.callbacks", "monitor")
        ),
        "a callback in no package": Case(
            lambda kit: [*kit.fit(), "--trainer.callbacks+=my_callbacks.Printer"], ("my_callbacks", "PYTHONPATH=FOLDER")
        ),
        "a logger that is no class": Case(
            lambda kit: [*kit.fit(), "--trainer.logger", "TensorBord"], ("trainer.logger", "'TensorBord'")
        ),
        "a strategy's class as its name": Case(
            lambda kit: [*kit.fit(), "--trainer.strategy", "dpr_lightning.strategies.Zero2Strategy"],
            ("`--trainer.strategy.class_path`",),
        ),
        "a target module that is not there": Case(
            lambda kit: kit.fit(policy={"source": kit.workspace.sft, "lora": {"target_modules": ["q_projj"]}}),
            ("model.policy.lora.target_modules", "q_projj", "q_proj,"),
        ),
        "less than one batch": Case(
            lambda kit: kit.fit(trainer={"limit_train_batches": 0.01}), ("trainer.limit_train_batches: ", "0.25")
        ),
        "no batches at all": Case(
            lambda kit: kit.fit(trainer={"limit_train_batches": 0}), ("trainer.limit_train_batches: found 0",)
        ),
        "no epochs": Case(lambda kit: kit.fit(trainer={"max_epochs": 0}), ("trainer.max_epochs: found 0",)),
        "gradients clipped to less than nothing": Case(
            lambda kit: kit.fit(trainer={"gradient_clip_val": -1.0}), ("trainer.gradient_clip_val: found -1",)
        ),
        "validation every 0 batches": Case(
            lambda kit: kit.fit(trainer={"val_check_interval": 0}), ("trainer.val_check_interval: found 0",)
        ),
        "validation every 0 epochs": Case(
            lambda kit: kit.fit(trainer={"check_val_every_n_epoch": 0}), ("trainer.check_val_every_n_epoch: found 0",)
        ),
        "a wrong value of a callback's option": Case(
            lambda kit: [
                *(*kit.fit(), "--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=hour"),
            ],
            ("trainer.callbacks.logging_interval: has to be Literal['step', 'epoch']; found hour",),
        ),
        "validation less often than there are batches": Case(
            lambda kit: kit.fit(trainer={"val_check_interval": 1000}), ("trainer.val_check_interval", "1000")
        ),
        "a negative learning rate": Case(
            lambda kit: kit.fit(model={"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}}}),
            ("model.optimizer: ", "-1.0"),
        ),
        "a limit of time in words": Case(
            lambda kit: kit.fit(trainer={"max_time": "3 hours"}), ("trainer.max_time: ", "00:01:30:00")
        ),
        "a learning rate that is to be searched": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}LearningRateFinder"],
            ("LearningRateFinder", "`model.optimizer.init_args.lr`"),
        ),
        "a callback that needs a logger": Case(
            lambda kit: [*kit.fit(), f"--trainer.callbacks+={CALLBACKS}LearningRateMonitor"],
            ("trainer.callbacks: ", "no logger"),
        ),
        "a monitored name that is not logged": Case(
            lambda kit: _monitored(kit, "EarlyStopping", "train/nl"), ("EarlyStopping", "'train/nl'", "'train/nll'")
        ),
        "a monitored name without validation": Case(
            lambda kit: _monitored(kit, "ModelCheckpoint", "validation/nll"), ("ModelCheckpoint", "`data.validation`")
        ),
        "a path where a list belongs": Case(
            lambda kit: [
                "rewards",
                "--sft",
                kit.workspace.sft,
                "--references",
                "early",
                "--responses",
                "p.jsonl",
                "--output",
                "out",
            ],
            ("references", "'[early]'"),
        ),
        "a run too short for curves": Case(_run_without_curves, ("metrics.csv", "`trainer.log_every_n_steps`")),
        "a folder that is no run": Case(lambda kit: ["report", "--run", str(kit.folder)], ("report.json",)),
    },
}


def table(folder: Path) -> str:
    """What is said to every case, in Markdown."""
    workspace = make_workspace(folder / "healthy")
    parts = [BEGIN]
    for group, cases in CASES.items():
        parts += ["", f"| {group} | `dpr` says |", "|---|---|"]
        for number, (name, case) in enumerate(cases.items()):
            answer = said_to(case, folder / f"{group[:4]}{number}" / "case", workspace)
            parts.append(row(name, answer, folder))
    return "\n".join([*parts, "", END])


def row(name: str, answer: Answer, folder: Path) -> str:
    """A row of the table; of paths only the name is told."""
    told = re.sub(r"^dpr \w+: ", "", answer.message.replace(str(folder), ""))
    told = re.sub(r"(?<=['\s(])/(\S+/)+", "", f" {told}")
    told = " ".join(told.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return f"| {name} | {told if len(told) <= 320 else told[:319] + '…'} |"


def write(document: Path) -> None:
    """Put the table in its place in ``document``."""
    text = document.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    with tempfile.TemporaryDirectory() as folder:
        document.write_text(before + table(Path(folder)) + after)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
