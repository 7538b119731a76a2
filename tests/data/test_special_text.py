"""Special tokens spelled in the texts of rows, learnt tokens without a text, and text that a tokenizer changes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dpr_lightning.data import DemonstrationDataModule, PromptSet, notices
from dpr_lightning.data.chat_format import Format, carry_format, choose_format
from dpr_lightning.data.conversations import Example, to_demonstration, to_prompt
from dpr_lightning.data.notices import Notices
from dpr_lightning.data.rows import Row
from dpr_lightning.data.special_text import CONTENT_TAGS, SpecialTextEncoder
from dpr_lightning.data.tokenization import tokenize_example, tokenize_examples, tokenize_prompts
from dpr_lightning.errors import InputError
from tests.data.conftest import TEMPLATE, make_tokenizer
from tests.policies.tokenizer_zoo import ZOO, build_tokenizer
from tests.tiny import tiny_tokenizer

Writer = Callable[..., str]


def demonstration(number: int = 3, **values: Any) -> Example:
    return to_demonstration(Row("f.jsonl", number, values))


def form_of(name: str, tokenizer: PreTrainedTokenizerFast) -> Format:
    setup = ZOO[name]
    closing = next((token for token in ("<|im_end|>", "<end_of_turn>", "<|end|>") if token in setup.stops), None)
    return choose_format(tokenizer, end_of_turn=closing)


@pytest.mark.parametrize("name", ZOO)
def test_spelled_special_tokens_are_text_and_everything_else_stays(name: str) -> None:
    setup = ZOO[name]
    tokenizer = build_tokenizer(setup)
    form, roles = form_of(name, tokenizer), [token for token in setup.added if token[1] == "｜"]
    special = [token for token in (*setup.special, *roles) if CONTENT_TAGS.fullmatch(token) is None]
    text = "a " + " ".join(special) + "b" + "".join(special) + "\ncé"
    plain, spelled = demonstration(prompt="what is é", completion="a b"), demonstration(prompt=text, completion=text)
    notices = Notices()
    rows = tokenize_examples([plain, spelled], tokenizer, form, notices)
    prompts = tokenize_prompts([to_prompt(Row("f", 1, {"prompt": text}))], tokenizer, form)
    start = len(prompts[0])
    assert rows[1].tokens[:start] == prompts[0]
    learnt = tokenizer.decode(rows[1].tokens[start:-1], clean_up_tokenization_spaces=False)
    assert learnt.removeprefix("<|channel|>final<|message|>").strip() == text
    # What the format writes is what it writes around other text.
    named = {tokenizer.convert_tokens_to_ids(token) for token in special}
    assert [token for token in rows[1].tokens if token in named] == [
        token for token in rows[0].tokens if token in named
    ]
    assert notices.lines() == [
        "special tokens that texts spell are encoded as text (`special_tokens_in_text` chooses) "
        "(1 row, first f.jsonl:3)."
    ]
    # The copy that encodes such rows agrees with the tokenizer on all others, white space around tokens included.
    encoder = SpecialTextEncoder(tokenizer, form)
    texts = [f"a {'x'.join(setup.special)} b", f"{setup.special[-1]}\n 1 + {setup.special[0]}", "  é 日本\n\n a", ""]
    for adds in (True, False):
        ours, theirs = (encoder.encode(texts, [""] * 4, [spells] * 4, adds) for spells in (True, False))
        assert ours == theirs


def test_tools_reasoning_and_names_are_protected_too() -> None:
    template = TEMPLATE.replace("message['content']", "(message.name or '') + (tools | tojson) + message['content']")
    tokenizer = make_tokenizer(template)
    tools = [{"type": "function", "function": {"name": "f", "description": "writes <|end|> and <|stop|>"}}]
    messages = [
        {"role": "user", "content": "hi", "name": "<|start|>"},
        {"role": "assistant", "content": "hello", "name": "a"},
    ]
    row = tokenize_example(demonstration(messages=messages, tools=tools), tokenizer)
    names = tokenizer.convert_ids_to_tokens(row.tokens)
    assert [name for name in names if name in ("<|start|>", "<|end|>", "<|stop|>")] == [
        *("<|start|>", "<|end|>", "<|start|>", "<|end|>")
    ]


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<tool_call>", "[THINK]"])
def test_tags_of_the_assistant_stay_tokens(tag: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [tag]})
    identifier = tokenizer.convert_tokens_to_ids(tag)
    for completion in (f"{tag}hello", f"{tag}hello <|stop|>"):
        row = tokenize_example(demonstration(prompt="hi", completion=completion), tokenizer)
        assert row.tokens.count(identifier) == 1
        assert tokenizer.convert_tokens_to_ids("<|stop|>") not in row.tokens


def test_tokenizers_that_cannot_write_the_text_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    example = demonstration(prompt="hi <|stop|>", completion="hello")
    with pytest.raises(InputError, match=r"f\.jsonl:3: .*'<\|stop\|>'.*`data.special_tokens_in_text: tokens`"):
        tokenize_example(example, tokenizer)
    tokens = tokenize_examples([example], tokenizer, choose_format(tokenizer, special_tokens_in_text="tokens"))[
        0
    ].tokens
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|stop|>")) == 1


def test_tags_of_tool_calls_that_are_not_special_stay_tokens() -> None:
    template = TEMPLATE.replace("{% for", "{% if tools %}<arg_key>{% endif %}{% for", 1)
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens(["<arg_key>", "<|user|>"])
    tokenizer.chat_template = template.replace("<|start|>", "<|user|>")
    row = tokenize_example(demonstration(prompt="hi <|user|>", completion="<arg_key>"), tokenizer)
    names = tokenizer.convert_ids_to_tokens(row.tokens)
    assert (names.count("<arg_key>"), names.count("<|user|>")) == (1, 2)  # before both turns, not in the text


def test_settings(chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    example = demonstration(prompt="hi <|stop|>", completion="hello")
    stop = chat_tokenizer.convert_tokens_to_ids("<|stop|>")
    for setting, count in (("text", 0), ("tokens", 1)):
        form = choose_format(chat_tokenizer, special_tokens_in_text=setting)  # type: ignore[arg-type]
        assert tokenize_examples([example], chat_tokenizer, form)[0].tokens.count(stop) == count
    with pytest.raises(InputError, match=r"f\.jsonl:3: a text spells '<\|stop\|>'.*`data.special_tokens_in_text`"):
        tokenize_examples([example], chat_tokenizer, choose_format(chat_tokenizer, special_tokens_in_text="error"))
    with pytest.raises(InputError, match=r"is one of text, tokens, error; found 'no'"):
        choose_format(chat_tokenizer, special_tokens_in_text="no")  # type: ignore[arg-type]
    # Later stages use the one that the policy was trained with.
    carried = make_tokenizer()
    model = torch.nn.Module()
    model.generation_config = None  # type: ignore[assignment]
    carry_format(choose_format(carried, special_tokens_in_text="tokens"), model, carried)
    carried.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert choose_format(loaded).special_text == "tokens"
    assert choose_format(loaded, special_tokens_in_text="text").special_text == "text"
    carry_format(choose_format(loaded, special_tokens_in_text="text"), model, loaded)
    assert choose_format(loaded).special_text == "text"


def test_private_characters_are_ordinary_text_elsewhere() -> None:
    tokenizer = make_tokenizer()
    icon = chr(0xF0001)
    row = tokenize_example(demonstration(prompt=f"hi {icon}", completion=icon), tokenizer)
    assert icon in tokenizer.decode(row.tokens[row.mask.index(True) :])
    with pytest.raises(InputError, match=r"f\.jsonl:3: .*private character U\+F0001"):
        tokenize_example(demonstration(prompt=f"hi {icon}", completion="<|stop|>"), tokenizer)


def test_messages_name_the_text_of_the_row() -> None:
    template = TEMPLATE.replace("message['content']", "(message['content'] if loop.last else 'x')")
    chat = [
        {"role": "user", "content": "<|stop|>"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    with pytest.raises(InputError, match=r"'<\|stop\|><\|end\|>.*' becomes 'x"):
        tokenize_example(demonstration(messages=chat), make_tokenizer(template))


def test_a_vocabulary_that_writes_the_token_anyway_is_refused() -> None:
    inner = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("<", -1.0), ("</s>", -0.1), ("s", -1.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", pad_token="<unk>")
    with pytest.raises(InputError, match=r"f\.jsonl:3: .*no other way to write it"):
        tokenize_example(demonstration(prompt="a", completion="s</s>"), tokenizer)


def test_unknown_characters_are_counted_named_and_refused_above_a_share(
    write_rows: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(tmp_path / "tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    good = [{"prompt": f"{n}+1=", "completion": "two is the answer"} for n in range(40)]
    bad = {"prompt": "9+9=", "completion": "3 é{x}"}

    def data(rows: list[dict[str, str]], **options: Any) -> DemonstrationDataModule:
        path = write_rows(rows)
        module = DemonstrationDataModule(
            path, tokenizer=folder, batch_size=2, cache_dir=str(tmp_path / "c"), validation=None, **options
        )
        module.setup()
        return module

    with pytest.raises(
        InputError, match=r"3 of 7 tokens to learn are '<unk>'.*'é', '\{', '\}'.*:1\).*data.max_unknown"
    ):
        data([bad])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # from the cache too
            caplog.clear()
            notices._logged.clear()  # as in another process
            data_module = data([*good, bad])
            assert "3 of 727 tokens to learn are '<unk>': the tokenizer has no token for 'é', '{', '}'" in caplog.text
    assert data_module.train_data is not None
    assert data_module.train_data.report.counts()["unknown_tokens"] == 3
    with pytest.raises(InputError, match="max_unknown"):
        data([*good, bad], max_unknown=0.0)
    data([bad], max_unknown=0.5)
    caplog.clear()
    PromptSet.load(write_rows([{"prompt": "é"}, {"prompt": "a"}]), tiny_tokenizer())
    assert "characters that the tokenizer has no token for ('<unk>') (1 row" in caplog.text


def test_text_that_a_tokenizer_changes_is_counted() -> None:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<eos>", *"abcdefgé "])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>", pad_token="<unk>")
    notices = Notices()
    texts = ["a bad", "A bad", "e\u0301a", " a"]
    examples = [demonstration(index, prompt="a", completion=text) for index, text in enumerate(texts)]
    tokenize_examples(examples, tokenizer, choose_format(tokenizer), notices)
    assert notices.lines() == [
        "the tokens to learn do not decode to the row's text, for the tokenizer changes it (1 row, first f.jsonl:1)."
    ]


def test_the_setting_is_part_of_the_cache(write_rows: Writer, tmp_path: Path) -> None:
    folder = str(tmp_path / "tokenizer")
    make_tokenizer().save_pretrained(folder)
    path, cache = write_rows([{"prompt": "a <|stop|>", "completion": "b"}]), tmp_path / "cache"
    lengths = []
    for setting in ("text", "tokens", "text"):
        data = DemonstrationDataModule(
            path, tokenizer=folder, batch_size=1, cache_dir=str(cache), special_tokens_in_text=setting, validation=None
        )
        data.setup()
        assert data.train_data is not None
        lengths.append(int(data.train_data.lengths[0]))
    assert lengths[0] == lengths[2] > lengths[1]
    manifests = [json.loads((entry / "manifest.json").read_text()) for entry in cache.iterdir() if entry.is_dir()]
    assert len(manifests) == 2
