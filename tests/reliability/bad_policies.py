"""Wrong policies and outputs, with words of the error messages."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from dpr_lightning.locking import LOCK
from dpr_lightning.policies import (
    LoraSpec,
    PolicySpec,
    build_policy,
    create_toy_policy,
    save_policy,
)
from tests.reliability.kit import GOOD, Case, Kit
from tests.workspace import write_rows


def _without(kit: Kit, pattern: str) -> list[str]:
    folder = kit.policy()
    for path in folder.glob(pattern):
        path.unlink()
    return kit.fit(policy={"source": str(folder)})


def _truncated_weights(kit: Kit) -> list[str]:
    folder = kit.policy()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return kit.fit(policy={"source": str(folder)})


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


def _rewards(kit: Kit, reference: Path) -> list[str]:
    arguments = ["--sft", kit.workspace.sft, "--references", f"[{reference}]", "--output", str(kit.folder / "scored")]
    return ["rewards", "--responses", kit.workspace.demonstrations, *arguments]


def _serve(kit: Kit, *arguments: str) -> list[str]:
    return ["serve-reward", "--sft", kit.workspace.sft, "--references", f"[{kit.workspace.reference}]", *arguments]


def _file(path: Path) -> Path:
    torch.save({}, path)
    return path


def _trainer_run(kit: Kit) -> Path:
    for step in (2, 10):
        shutil.copytree(kit.workspace.reference, kit.folder / "trained" / f"checkpoint-{step}")
    return kit.folder / "trained"


def _locked(kit: Kit) -> list[str]:
    (kit.folder / "run").mkdir()
    owner = {"pid": 7, "host": "node3", "since": "2031-01-01T09:00:00+01:00", "command": "dpr fit --config sft.yaml"}
    (kit.folder / "run" / LOCK).write_text(json.dumps(owner))
    return _references(kit, kit.workspace.sft, kit.folder / "run")


def _edited_json(kit: Kit, name: str, **values: Any) -> list[str]:
    folder = kit.policy()
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | values))
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
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
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


def _kind(kit: Kit, kind: str) -> str:
    """A copy of the policy whose config.json is that of another kind of model."""
    folder = kit.policy()
    AutoConfig.for_model(kind).save_pretrained(folder)
    return str(folder)


POLICY_CASES: dict[str, dict[str, Case]] = {
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
        "a checkpoint of Lightning as a reference": Case(
            lambda kit: _rewards(kit, _file(kit.folder / "last.ckpt")), ("checkpoint of Lightning", "dpr export")
        ),
        "the folder of a trainer's run as a reference": Case(
            lambda kit: _rewards(kit, _trainer_run(kit)), ("checkpoint-2", "checkpoint-10", "Name one of these")
        ),
        "a file of weights as a reference": Case(
            lambda kit: _rewards(kit, Path(kit.workspace.reference) / "model.safetensors"), ("Name its folder",)
        ),
        "a reward server without a reward": Case(
            lambda kit: ["serve-reward", "--port", "0"], ("required: sft, references",)
        ),
        "a reward server on a port that is no number of one": Case(
            lambda kit: _serve(kit, "--port", "99999"), ("99999", "`--port`")
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
        "a model with its own code": Case(_foreign_code, ("trust_remote_code",)),
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
}
