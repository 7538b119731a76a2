"""One decision on stops and padding, from the tokenizer, the policy's configurations, the template and options."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from dpr_lightning.cli.main import main
from dpr_lightning.data.chat_format import carry_format, choose_format
from dpr_lightning.errors import InputError
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, load_tokenizer, save_policy, special_tokens
from dpr_lightning.policies.special_tokens import template_tokens
from dpr_lightning.rollouts import decode_answers
from tests.data.conftest import TEMPLATE, make_tokenizer
from tests.policies.tokenizer_zoo import CHATML, ZOO, Setup, build_tokenizer, write_setup

END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def chatml(*reserved: str, pad: str | None = END, eos: str = END, **more: Any) -> Setup:
    """ChatML on a base whose EOS is another token than the one that closes turns."""
    named = {"eos_token": eos, **({"pad_token": pad} if pad else {})}
    return Setup([END, IM_END, IM_START, *reserved], named, [], "", template=CHATML, **more)


@pytest.mark.parametrize(
    ("reserved", "pad"),
    [
        (["<|fim_pad|>", "<|vision_pad|>"], "<|fim_pad|>"),
        (["<|image_pad|>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>"),
        (["<|image_pad|>", "<|vision_pad|>"], "<|vision_pad|>"),
        (["<|extra_0|>", "<|extra_1|>"], "<|extra_0|>"),
        (["[control_8]"], "[control_8]"),
        (["<|dummy_85|>", "<｜▁pad▁｜>"], "<｜▁pad▁｜>"),
        ([">>UNUSED_0<<"], ">>UNUSED_0<<"),
        (["<|extra|>", "<|paddle|>", "<|unusedly|>", "<unused7>"], "<unused7>"),
    ],
)
def test_reserved_tokens_pad(reserved: list[str], pad: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_setup(tmp_path, chatml(*reserved)), for_training=True)
    assert tokenizer.pad_token == pad


@pytest.mark.parametrize("named", [END, IM_END, IM_START, None])
def test_what_has_a_meaning_does_not_pad(named: str | None, tmp_path: Path) -> None:
    folder = write_setup(tmp_path, chatml(pad=named))
    with pytest.raises(InputError, match=r"no reserved token could pad.*`model\.policy\.pad_token`.*'<\|endoftext\|>'"):
        load_tokenizer(folder, for_training=True)
    # Commands that save nothing pad with EOS, which lengths tell from stops.
    assert load_tokenizer(folder).pad_token == END
    assert load_tokenizer(folder, pad_token=END, for_training=True).pad_token == END
    for wrong, words in ((IM_START, "has a meaning"), (IM_END, "has a meaning"), ("<nothing>", "is no token")):
        with pytest.raises(InputError, match=rf"`model\.policy\.pad_token` '{wrong.replace('|', '.')}' {words}"):
            load_tokenizer(folder, pad_token=wrong, for_training=True)


def test_end_of_turn_and_another_template_are_known_when_the_format_is(tmp_path: Path) -> None:
    """The first reserved token closes turns in a template that data bring with them."""
    folder = write_setup(tmp_path, chatml("<unused0>", "<unused1>"))
    template = CHATML.replace(IM_END, "<unused0>")
    policy, tokenizer = build_policy(PolicySpec(source=folder))
    assert tokenizer.pad_token == "<unused0>"
    carry_format(choose_format(tokenizer, template, "<unused0>"), policy, tokenizer)
    assert tokenizer.pad_token == "<unused1>"
    special = special_tokens(tokenizer, policy, required=True)
    names = tokenizer.convert_ids_to_tokens([*special.stops, special.pad])
    assert names == [END, "<unused0>", "<unused1>"]
    assert policy.config.pad_token_id == policy.generation_config.pad_token_id == special.pad  # type: ignore[union-attr]


def test_an_explicit_choice_travels_with_the_policy(tmp_path: Path) -> None:
    folder = write_setup(tmp_path / "base", ZOO["GPT-2"])
    spec = PolicySpec(source=folder, pad_token=END)
    model, tokenizer = build_policy(spec)
    saved = str(save_policy(model, tokenizer, tmp_path / "saved", spec))
    again, loaded = build_policy(PolicySpec(source=saved))
    special = special_tokens(loaded, again, required=True)
    assert special.stops == (special.pad,)
    assert special.unk is None
    # The embedding of a token that pads has no gradient in PyTorch; EOS is read in conversations.
    assert again.get_input_embeddings().padding_idx is None  # type: ignore[operator]
    tokens = torch.tensor([[5, 6, special.eos, 7, special.eos, special.pad]])
    mask = torch.tensor([[False, True, True, True, True, False]])
    assert decode_answers(tokens, mask, loaded, special) == [loaded.decode([6, special.eos, 7])]


def test_a_pad_token_that_the_checkpoint_names_is_left_alone(tmp_path: Path) -> None:
    folder = write_setup(tmp_path / "base", ZOO["Qwen2.5 instruct"])
    spec = PolicySpec(source=folder)
    model, tokenizer = build_policy(spec)
    saved = save_policy(model, tokenizer, tmp_path / "saved", spec)
    for name, key in (("config.json", "pad_token_id"), ("generation_config.json", "pad_token_id")):
        before, after = (json.loads((Path(where) / name).read_text()).get(key) for where in (folder, saved))
        assert after == before
    assert json.loads((saved / "tokenizer_config.json").read_text())["pad_token"] == END


def test_stops_of_folders(tmp_path: Path) -> None:
    """Without loading the model: its generation configuration, else its configuration, else the adapter's base."""
    setup = ZOO["Gemma 3"]
    base = write_setup(tmp_path / "base", setup)
    tokenizer = load_tokenizer(base)
    expected = set(tokenizer.convert_tokens_to_ids(list(setup.stops)))
    assert set(special_tokens(tokenizer, base).stops) == expected
    spec = PolicySpec(source=base, lora=LoraSpec(rank=2))
    model, words = build_policy(spec)
    adapter = save_policy(model, words, tmp_path / "adapter", spec)
    assert set(special_tokens(words, str(adapter)).stops) == expected
    (adapter / "generation_config.json").unlink()  # as peft writes adapters
    assert set(special_tokens(words, str(adapter)).stops) == expected
    assert special_tokens(words, str(tmp_path)).stops == (words.eos_token_id,)
    GenerationConfig(eos_token_id=[7]).save_pretrained(base)
    assert special_tokens(tokenizer, base).stops == (tokenizer.eos_token_id, 7)


def test_tokens_of_templates() -> None:
    assert template_tokens(make_tokenizer()) == {"<|start|>", "<|end|>"}
    assert template_tokens(make_tokenizer(None)) == frozenset()
    assert template_tokens(make_tokenizer("{{ bos_token }}" + TEMPLATE)) == {"<bos>", "<|start|>", "<|end|>"}
    # Names that a template puts together show in what it renders.
    phi = build_tokenizer(ZOO["Phi-3"])
    assert template_tokens(phi) == {"<|user|>", "<|assistant|>", "<|system|>", "<|end|>", END}


def test_answers_are_text_without_what_ends_them() -> None:
    tokenizer = make_tokenizer()
    special = special_tokens(tokenizer, end_of_turn="<|stop|>")
    ids = tokenizer.convert_tokens_to_ids
    words, pad, eos, stop, start = (
        tokenizer("hello , world").input_ids,
        *ids(["<pad>", "<|end|>", "<|stop|>", "<|start|>"]),
    )
    rows = [
        ([*words, eos], "hello , world"),
        ([*words, stop], "hello , world"),
        ([*words, pad, pad, eos], "hello , world"),
        ([start, *words, start], "<|start|>hello , world<|start|>"),
        ([eos, *words], "<|end|>hello , world"),
        ([eos], ""),
    ]
    longest = max(len(row) for row, _ in rows)
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row, _ in rows])
    mask = torch.tensor([[index < len(row) for index in range(longest)] for row, _ in rows])
    assert decode_answers(tokens, mask, tokenizer, special) == [text for _, text in rows]
    tokenizer.clean_up_tokenization_spaces = True
    assert decode_answers(tokens, mask, tokenizer, special) == [text for _, text in rows]


def test_the_advice_of_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_setup(tmp_path / "base", ZOO["GPT-2"])
    command = ["export", "--source", folder, "--output", str(tmp_path / "exported")]
    assert main(command) == 2
    assert "`pad_token` of `dpr export`" in capsys.readouterr().err
    main([*command, "--pad_token", END])
    assert load_tokenizer(str(tmp_path / "exported"), for_training=True).pad_token == END
