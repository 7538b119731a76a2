"""Tokenizers with the special tokens, settings and kind of template of well-known models, built on the spot.

Names of tokens and settings are those of the models' files; vocabularies are tiny, and the templates are short ones of
the same structure.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = ["the sum of two numbers is what the user asks", "yes no maybe 0 1 2 3 4 5 6 7 8 9 + - = ? ."] * 30
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>Channels: final.<|end|>{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|return|>' }}{% else %}"
    "{{ '<|start|>user<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
OLMO = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>", "<|image_pad|>"]


@dataclass(frozen=True)
class Setup:
    """A tokenizer, and the expected result for it.

    Args:
        special: added tokens with special=True, in the order of their ids.
        added: added tokens with special=False.
        named: the bos, eos, pad and unk token of tokenizer_config.json.
        spaces: ``bytes`` (byte-level), or how words carry spaces: ``prepend``, ``first`` or ``replace``; all of those
            fall back on bytes.
        adds_bos: whether the tokenizer begins every text with BOS.
        template: the chat template; None: there is none.
        generation_eos: ``eos_token_id`` of generation_config.json; None: there is no such file.
        config_eos: ``eos_token_id`` of config.json; None: the tokenizer's.
        strip_right: whether special tokens strip the white space after them.
        stops: expected, EOS first.
        pad: expected.
        options: that `dpr fit` needs.
        advice: words of the error without them.
    """

    special: Sequence[str]
    named: dict[str, str]
    stops: Sequence[str]
    pad: str
    added: Sequence[str] = ()
    spaces: str = "bytes"
    adds_bos: bool = False
    template: str | None = None
    generation_eos: Sequence[str] | None = None
    config_eos: Sequence[str] | None = None
    strip_right: bool = False
    options: dict[str, str] = field(default_factory=dict)
    advice: Sequence[str] = ()


def _named(eos: str, pad: str | None = None, bos: str | None = None, unk: str | None = None) -> dict[str, str]:
    names = {"eos_token": eos, "pad_token": pad, "bos_token": bos, "unk_token": unk}
    return {name: token for name, token in names.items() if token is not None}


def _gemma(*more: str, **eos: Sequence[str]) -> Setup:
    """Gemma 2 and 3: they differ in further special tokens, and in the file that names their stops."""
    return Setup(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *more],
        _named("<eos>", pad="<pad>", bos="<bos>", unk="<unk>"),
        _GEMMA_STOPS,
        "<pad>",
        added=["<unused0>", "<unused1>"],
        spaces="replace",
        adds_bos=True,
        template=GEMMA,
        generation_eos=eos.get("generation_eos"),
        config_eos=eos.get("config_eos"),
    )


_GEMMA_STOPS = ["<eos>", "<end_of_turn>"]
_END = "<|endoftext|>"
_SPM = _named("</s>", bos="<s>", unk="<unk>")
ZOO = {
    "GPT-2": Setup(
        [_END],
        _named(_END, bos=_END, unk=_END),
        [_END],
        _END,
        generation_eos=[_END],
        options={"pad_token": _END},
        advice=["has no pad token", f"`model.policy.pad_token` (`pad_token` of `dpr export`) to '{_END}'"],
    ),
    "Llama 2": Setup(
        ["<unk>", "<s>", "</s>"],
        _SPM,
        ["</s>"],
        "<unk>",
        spaces="prepend",
        adds_bos=True,
        template=INST,
        generation_eos=["</s>"],
    ),
    "Llama 3.1": Setup(
        [
            *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
            *("<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
            "<|python_tag|>",
        ],
        _named("<|eot_id|>", bos="<|begin_of_text|>"),
        ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
        "<|finetune_right_pad_id|>",
        adds_bos=True,
        template=LLAMA_3,
        generation_eos=["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    ),
    "Mistral": Setup(
        [
            "<unk>",
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[control_8]",
            "[control_9]",
        ],
        _SPM,
        ["</s>"],
        "[control_8]",
        spaces="first",
        adds_bos=True,
        template=INST,
        generation_eos=["</s>"],
    ),
    "Qwen2.5 base": Setup(
        QWEN,
        _named(_END, pad=_END),
        [_END, "<|im_end|>"],
        "<|vision_pad|>",
        added=["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_pad|>"],
        template=CHATML,
        generation_eos=[_END],
        options={"end_of_turn": "<|im_end|>"},
        advice=["does not close the assistant's turn", "set end_of_turn: '<|im_end|>'"],
    ),
    "Qwen2.5 instruct": Setup(
        QWEN,
        _named("<|im_end|>", pad=_END),
        ["<|im_end|>", _END],
        _END,
        added=["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_pad|>"],
        template=CHATML,
        generation_eos=["<|im_end|>", _END],
    ),
    "Qwen3": Setup(
        QWEN,
        _named("<|im_end|>", pad=_END),
        ["<|im_end|>", _END],
        _END,
        added=["<tool_call>", "</tool_call>", "<|fim_pad|>", "<think>", "</think>"],
        template=CHATML,
        generation_eos=["<|im_end|>", _END],
    ),
    "Gemma 2": _gemma(generation_eos=_GEMMA_STOPS),
    "Gemma 3": _gemma("<start_of_image>", config_eos=_GEMMA_STOPS),
    "Phi-3": Setup(
        [
            *("<unk>", "<s>", "</s>", _END, "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|system|>"),
            *("<|end|>", "<|placeholder3|>", "<|user|>"),
        ],
        _named(_END, pad=_END, bos="<s>", unk="<unk>"),
        [_END, "<|assistant|>", "<|end|>"],
        "<|placeholder1|>",
        spaces="prepend",
        template=PHI_3,
        generation_eos=[_END, "<|assistant|>", "<|end|>"],
        strip_right=True,
    ),
    "SmolLM2": Setup(
        [_END, "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<jupyter_start>", "<empty_output>"],
        _named("<|im_end|>", pad="<|im_end|>", bos="<|im_start|>", unk=_END),
        ["<|im_end|>"],
        _END,
        template=CHATML,
        generation_eos=["<|im_end|>"],
    ),
    "DeepSeek-R1 distil": Setup(
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|vision_pad|>", "<|image_pad|>"],
        _named("<｜end▁of▁sentence｜>", pad="<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>"),
        ["<｜end▁of▁sentence｜>"],
        "<|vision_pad|>",
        added=["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<|fim_pad|>"],
        adds_bos=True,
        template=R1,
        generation_eos=["<｜end▁of▁sentence｜>"],
    ),
    "GPT-OSS": Setup(
        [
            *("<|startoftext|>", _END, "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>"),
            *("<|message|>", "<|call|>", "<|reserved_200000|>", "<|endofprompt|>"),
        ],
        _named("<|return|>", pad=_END, bos="<|startoftext|>"),
        ["<|return|>", _END, "<|call|>"],
        _END,
        template=HARMONY,
        generation_eos=["<|return|>", _END, "<|call|>"],
    ),
    "OLMo 2": Setup(
        [_END, "<|pad|>"],
        _named(_END, pad="<|pad|>", bos=_END, unk=_END),
        [_END],
        "<|pad|>",
        template=OLMO,
        generation_eos=[_END],
    ),
    "Falcon": Setup(
        [">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>SUMMARY<<", ">>COMMENT<<", ">>SUFFIX<<", _END],
        _named(_END),
        [_END],
        ">>TITLE<<",
        generation_eos=[_END],
        options={"pad_token": ">>TITLE<<"},
        advice=["has no pad token", "to a special token that your data do not use ('>>TITLE<<', "],
    ),
}


def build_tokenizer(setup: Setup) -> PreTrainedTokenizerFast:
    """The tokenizer of a set-up."""
    inner = _byte_level() if setup.spaces == "bytes" else _byte_fallback(setup.spaces)
    end = setup.named["eos_token"]
    strips = {token: setup.strip_right and token != end for token in setup.special}
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=strips[token]) for token in setup.special]
    )
    inner.add_tokens([AddedToken(token, special=False, normalized=False) for token in setup.added])
    if setup.adds_bos:
        bos = setup.named["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **setup.named)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = setup.template
    return tokenizer


def write_setup(folder: Path, setup: Setup) -> str:
    """A folder with the tokenizer of a set-up and a random Llama of about 20,000 weights."""
    tokenizer = build_tokenizer(setup)

    def ids(tokens: Sequence[str]) -> Any:
        result = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]
        return result if len(result) > 1 else result[0]

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ids(setup.config_eos or [setup.named["eos_token"]]),
        pad_token_id=None,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    if setup.generation_eos is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps({"eos_token_id": ids(setup.generation_eos)}))
    return str(folder)


def _byte_level() -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def _byte_fallback(spaces: str) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    trained = json.loads(inner.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *trained["vocab"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in trained["merges"]]
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaces == "first":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend("▁")] if spaces == "prepend" else []
        inner.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    if spaces != "replace":
        steps.append(decoders.Strip(" ", 1, 0))
    inner.decoder = decoders.Sequence(steps)
    return inner
