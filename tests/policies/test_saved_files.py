"""A policy's folder is its base's but for what was meant, is the policy in memory, and loads from anywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.folders import WRITTEN
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, load_tokenizer, save_policy, sources
from dpr_lightning.policies.adapters import base_of, is_adapter
from dpr_lightning.policies.probe import difference
from dpr_lightning.policies.saved_check import LARGEST_REREAD
from tests.tiny import write_tiny_policy
from tests.workspace import write_rows, write_sft_config

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, adapter, expected = sys.argv[1:]
if adapter == "adapter":
    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
tokens = AutoTokenizer.from_pretrained(folder)("1 + 2", return_tensors="pt")["input_ids"]
found = model.eval()(input_ids=tokens).logits.log_softmax(-1)
print("apart by", (found - torch.load(expected)).abs().max().item())
assert (found - torch.load(expected)).abs().max() < 1e-4
assert "dpr_lightning" not in sys.modules
"""


def byte_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", "<unk>", *alphabet])}
    inside = Tokenizer(models.BPE(vocab=words, merges=[]))
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inside.decoder = decoders.ByteLevel()
    inside.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inside, **(special | options))


def write_base(folder: Path, kind: str = "llama", tokenizer: Any = None, **config: Any) -> Path:
    tokenizer = tokenizer or byte_tokenizer()
    fields: dict[str, Any] = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    fields |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2} | config
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM.from_config
    make(AutoConfig.for_model(kind, **fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(path: Path, *without: str, **fields: Any) -> None:
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (config | fields).items() if key not in without}))


def left(folder: Path) -> None:
    write_base(folder, tokenizer=byte_tokenizer(padding_side="left", model_input_names=["input_ids"]))


def of_transformers_4(folder: Path) -> None:
    """The files as transformers 4 wrote them: other names of classes and settings, the template among them."""
    write_base(folder)
    change(folder / "config.json", "dtype", "rope_parameters", torch_dtype="bfloat16", rope_theta=5e5,
           transformers_version="4.40.0", _name_or_path="maker/base")  # fmt: skip
    change(folder / "tokenizer_config.json", "backend", "extra_special_tokens", chat_template=TEMPLATE,
           tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=True, additional_special_tokens=[],
           added_tokens_decoder={"1": {"content": "</s>", "special": True, "lstrip": False, "rstrip": False,
                                       "normalized": False, "single_word": False}})  # fmt: skip
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False, "normalized": False,
               "rstrip": False, "single_word": False}, "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    change(folder / "special_tokens_map.json", **special)
    change(folder / "generation_config.json", temperature=0.6, do_sample=True, top_p=0.9, eos_token_id=[1, 3])


def llama_class(folder: Path) -> None:
    of_transformers_4(folder)
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")


def without_class(folder: Path) -> None:
    write_base(folder, "qwen2", use_cache=False, num_key_value_heads=2)
    change(folder / "tokenizer_config.json", "tokenizer_class", "backend")


def jinja_file(folder: Path) -> None:
    write_base(folder, "mistral", num_key_value_heads=2)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    change(folder / "preprocessor_config.json", image_processor_type="none")


def learned_positions(folder: Path) -> None:
    write_base(folder, "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=False)


BASES = {f.__name__: f for f in (left, of_transformers_4, llama_class, without_class, jinja_file, learned_positions)}
MEANT = {"config.json": {"dtype", "torch_dtype"}, "generation_config.json": set(), "tokenizer_config.json": set()}
ADDED = {"generation_config.json", "chat_template.jinja"}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    messages = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]
    return write_rows(tmp_path / "rows.jsonl", [{"messages": messages}] * 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BASES)
def test_a_policy_has_the_files_of_its_base(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    BASES[kind](base)
    spec = PolicySpec(source=str(base))
    model, tokenizer = build_policy(spec)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    policy = save_policy(model, tokenizer, tmp_path / "policy", spec)
    names = {path.name for path in policy.iterdir()} ^ {path.name for path in base.iterdir()}
    assert names <= ADDED - {"chat_template.jinja"} | {WRITTEN}
    for path in base.iterdir():
        if path.suffix == ".json" and path.name in MEANT:
            before, after = (json.loads((folder / path.name).read_text()) for folder in (base, policy))
            differing = {key for key in {*before, *after} if before.get(key) != after.get(key)}
            assert differing <= MEANT[path.name], (path.name, differing)
        elif path.suffix != ".safetensors":
            assert (policy / path.name).read_bytes() == path.read_bytes()
    again = AutoTokenizer.from_pretrained(policy)
    assert again("a b")["input_ids"] == AutoTokenizer.from_pretrained(base)("a b")["input_ids"]
    assert again.padding_side == AutoTokenizer.from_pretrained(base).padding_side
    assert AutoModelForCausalLM.from_pretrained(policy).dtype == torch.float32


def test_what_was_changed_on_purpose_is_in_the_files(rows: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    of_transformers_4(base)
    template = TEMPLATE.replace("</s>", "<unk>") + "{% if add_generation_prompt %}<s>{% endif %}"
    callback = {"class_path": "dpr_lightning.callbacks.ReferenceCheckpoints",
                "init_args": {"folder": str(tmp_path / "policies"), "fractions": [0.5]}}  # fmt: skip
    template = ("{% for m in messages %}{% if m['role'] == 'user' %}<s>{{ m['content'] }}<s>"
                "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}")  # fmt: skip
    config = write_sft_config(tmp_path, {"source": str(base)}, rows, trainer={"callbacks": [callback]},
                              chat_template=template)  # fmt: skip
    main(["fit", "--config", config])
    policy = tmp_path / "policies" / "final"
    config_after, words = (json.loads((policy / f).read_text()) for f in ("config.json", "tokenizer_config.json"))
    assert (config_after["torch_dtype"], config_after["rope_theta"]) == ("float32", 5e5)
    assert "rope_parameters" not in config_after
    assert words["chat_template"] == template
    assert AutoTokenizer.from_pretrained(policy).chat_template == template
    assert not (policy / "chat_template.jinja").exists()
    generation = json.loads((policy / "generation_config.json").read_text())
    assert (generation["temperature"], generation["eos_token_id"]) == (0.6, [1, 3])


def test_a_chosen_pad_token_is_in_every_file(tmp_path: Path) -> None:
    base = tmp_path / "base"
    of_transformers_4(base)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change(base / name, pad_token="</s>")
    spec = PolicySpec(source=str(base), pad_token="<pad>")
    policy = save_policy(*build_policy(spec), tmp_path / "policy", spec)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((policy / name).read_text())["pad_token"] == "<pad>"


def save(base: Path, folder: Path, lora: LoraSpec | None = None, **options: Any) -> torch.Tensor:
    """Save a trained policy, and return what it says of a short text."""
    spec = PolicySpec(source=str(base), lora=lora)
    model, tokenizer = build_policy(spec)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    save_policy(model, tokenizer, folder, spec, **options)
    tokens = torch.tensor([tokenizer("1 + 2")["input_ids"]])
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=tokens).logits.log_softmax(-1)
    return result


@pytest.mark.parametrize(
    "kind", ["adapter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("whole", "merged"))]
)
def test_a_moved_folder_loads_in_an_empty_process(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    lora = None if kind == "whole" else LoraSpec(rank=2)
    expected = save(Path("base"), Path("policy"), lora, merge=kind == "merged")
    torch.save(expected, tmp_path / "expected.pt")
    shutil.move(tmp_path / "policy", tmp_path / "moved")
    if kind != "adapter":
        shutil.rmtree(tmp_path / "base")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "moved"), kind, str(tmp_path / "expected.pt")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_adapter_finds_a_base_that_moved_with_it(tmp_path: Path) -> None:
    write_base(tmp_path / "run" / "base")
    save(tmp_path / "run" / "base", tmp_path / "run" / "adapter", LoraSpec(rank=2))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    adapter = tmp_path / "elsewhere" / "adapter"
    assert Path(str(base_of(adapter).source)).samefile(tmp_path / "elsewhere" / "base")
    build_policy(PolicySpec(source=str(adapter)), trainable=False)


def test_the_remedies_for_a_base_that_is_gone(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    save(tmp_path / "base", tmp_path / "adapter", LoraSpec(rank=2))
    shutil.move(tmp_path / "base", tmp_path / "out of sight")
    adapter = str(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"base' of the adapter .* is not there\. Set 'source' in .*dpr_policy\.json"):
        build_policy(PolicySpec(source=adapter), trainable=False)
    build_policy(PolicySpec(source=str(tmp_path / "out of sight"), checkpoint=adapter, lora=LoraSpec(rank=2)))
    change(tmp_path / "adapter" / "dpr_policy.json", source=str(tmp_path / "out of sight"))
    build_policy(PolicySpec(source=adapter), trainable=False)
    (tmp_path / "adapter" / "dpr_policy.json").unlink()
    with pytest.raises(InputError, match=r"Set 'base_model_name_or_path' in .*adapter_config\.json"):
        build_policy(PolicySpec(source=adapter), trainable=False)
    change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "out of sight"))
    build_policy(PolicySpec(source=adapter), trainable=False)


def test_an_adapter_names_a_base_of_the_hub_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--maker--base" / "snapshots" / commit
    write_base(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    save(snapshot, tmp_path / "adapter", LoraSpec(rank=2), check=False)
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("dpr_policy.json", "source")):
        config = json.loads((tmp_path / "adapter" / name).read_text())
        assert (config[key], config["revision"]) == ("maker/base", commit)
    assert base_of(tmp_path / "adapter") == PolicySpec(source="maker/base", revision=commit)
    assert sources.lasting_source("maker/other", "v1") == ("maker/other", "v1")
    assert sources.lasting_source(str(tmp_path)) == (str(tmp_path.resolve()), None)


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)], ids=["whole", "adapter"])
@pytest.mark.parametrize("large", [False, True])
def test_files_that_differ_from_memory_replace_nothing(
    lora: LoraSpec | None, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "base")
    save(base, tmp_path / "policy", lora)
    before = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    monkeypatch.setattr("dpr_lightning.policies.export.LARGEST_REREAD", 0 if large else LARGEST_REREAD)

    def damage(folder: Path, spec: PolicySpec) -> None:
        if large:
            return
        file = folder / ("model.safetensors" if lora is None else "adapter_model.safetensors")
        save_file({name: value + 0.3 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})

    monkeypatch.setattr("dpr_lightning.policies.export.keep_base_files", damage)
    if large:  # the writer itself is wrong
        target = "transformers.modeling_utils.safe_save_file" if lora is None else "peft.peft_model.safe_save_file"
        monkeypatch.setattr(target, lambda tensors, path, metadata=None: save_file(
            {name: value + 0.3 for name, value in tensors.items()}, path, metadata=metadata))  # fmt: skip
    with pytest.raises(InputError, match="The saved files are not the policy in memory"):
        save(base, tmp_path / "policy", lora)
    assert {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "policy"}
    save(base, tmp_path / "policy", lora, check=False)


def test_a_check_changes_neither_modes_nor_random_numbers(tmp_path: Path) -> None:
    spec = PolicySpec(source=str(write_tiny_policy(tmp_path / "base")), lora=LoraSpec(rank=2, dropout=0.1))
    model, tokenizer = build_policy(spec)
    modes, state = [module.training for module in model.modules()], torch.random.get_rng_state()
    save_policy(model, tokenizer, tmp_path / "policy", spec)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert is_adapter(tmp_path / "policy")
    assert load_tokenizer(str(tmp_path / "policy")).padding_side == "right"


def test_nan_is_never_close() -> None:
    finite = torch.zeros(2, 3).log_softmax(-1)
    broken = finite.clone()
    broken[0, 1] = torch.nan
    never = finite.clone()
    never[0, 2] = -torch.inf
    assert difference(finite, broken) == difference(broken, finite) == torch.inf
    assert difference(broken, broken) == difference(never, never) == 0.0
