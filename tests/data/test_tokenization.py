"""Tokens and masks, against the text that they must spell."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.conversations import Example, to_demonstration, to_prompt
from dpr_lightning.data.over_length import LengthLimit
from dpr_lightning.data.rows import Row
from dpr_lightning.data.tokenization import (
    TokenizedExample,
    tokenize_example,
    tokenize_examples,
    tokenize_prompt,
    tokenize_prompts,
)
from dpr_lightning.errors import InputError
from tests.data.conftest import TEMPLATE, make_tokenizer

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hello world"},
    {"role": "user", "content": "What is 3+4?"},
    {"role": "assistant", "content": "It is 7."},
]


def demonstration(**values: Any) -> Example:
    return to_demonstration(Row("f.jsonl", 3, values))


def spans(tokenizer: PreTrainedTokenizerFast, tokenized: TokenizedExample) -> list[str]:
    """The text of each run of the mask."""
    runs: list[list[int]] = []
    previous = False
    for token, acted in zip(tokenized.tokens, tokenized.mask, strict=True):
        if acted:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = acted
    return [str(tokenizer.decode(run)) for run in runs]


def test_every_turn_of_the_assistant_is_masked_with_its_end(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenized = tokenize_example(demonstration(messages=CHAT), chat_tokenizer)
    assert spans(chat_tokenizer, tokenized) == ["hello world<|end|>", "It is 7.<|end|>"]
    assert tokenized.terminated
    assert tokenized.mask[-1]
    assert tokenized.tokens[-1] == chat_tokenizer.eos_token_id
    whole = chat_tokenizer.apply_chat_template(CHAT, tokenize=False)
    # The template's closing newline is all that is left out.
    assert str(chat_tokenizer.decode(tokenized.tokens)) + "\n" == whole
    assert tokenized.tokens == chat_tokenizer(whole, add_special_tokens=False)["input_ids"][: len(tokenized.tokens)]


def test_untrained_turns_stay_outside_the_mask(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [*CHAT[:2], {**CHAT[2], "train": False}, *CHAT[3:]]
    assert spans(chat_tokenizer, tokenize_example(demonstration(messages=chat), chat_tokenizer)) == ["It is 7.<|end|>"]
    apart = tokenize_example(demonstration(prompt=CHAT[:4], completion=CHAT[4:]), chat_tokenizer)
    assert apart == tokenize_example(demonstration(messages=chat), chat_tokenizer)


@pytest.mark.parametrize(
    "values",
    [
        {"messages": CHAT},
        {"messages": CHAT[1:3]},
        {"prompt": "What is 3+4?", "completion": "It is 7."},
        {"prompt": CHAT[:2], "completion": "hello"},
    ],
)
def test_a_policy_is_asked_with_the_tokens_it_was_trained_on(
    chat_tokenizer: PreTrainedTokenizerFast, values: dict[str, Any]
) -> None:
    tokenized = tokenize_example(demonstration(**values), chat_tokenizer)
    prompt = tokenize_prompt(to_prompt(Row("f.jsonl", 3, values)), chat_tokenizer)
    assert tokenized.tokens[: len(prompt)] == prompt
    assert all(tokenized.mask[len(prompt) :])
    assert not tokenized.mask[len(prompt) - 1]


def test_plain_text_joins_the_ids_of_prompt_completion_and_eos(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    example = demonstration(prompt="Answer:", completion=" 12")
    tokenized = tokenize_example(example, plain_tokenizer)
    prompt = plain_tokenizer("Answer:")["input_ids"]
    answer = [*plain_tokenizer(" 12", add_special_tokens=False)["input_ids"], plain_tokenizer.eos_token_id]
    assert tokenized == TokenizedExample(prompt + answer, [False] * len(prompt) + [True] * len(answer), True)
    assert tokenize_prompt(example, plain_tokenizer) == prompt


def test_plain_text_keeps_bos_and_lets_no_eos_stand_before_the_answer() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(template=None)
    bos, eos = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <|end|>", special_tokens=[("<bos>", bos), ("<|end|>", eos)]
    )
    tokens, mask, *_ = tokenize_example(demonstration(prompt="hello", completion="world"), tokenizer)
    assert tokens[0] == bos
    assert tokens.count(bos) == tokens.count(eos) == 1
    assert tokens[-1] == eos
    assert mask.index(True) == len(tokenizer("hello", add_special_tokens=False)["input_ids"]) + 1


def test_plain_text_is_possible_with_a_chat_tokenizer(
    chat_tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    example = demonstration(prompt="hello", completion=" world")
    assert tokenize_example(example, chat_tokenizer, "none") == tokenize_example(example, plain_tokenizer)


def test_a_template_may_come_from_a_file(plain_tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    tokenized = tokenize_example(demonstration(messages=CHAT), plain_tokenizer, str(path))
    assert tokenized == tokenize_example(demonstration(messages=CHAT), plain_tokenizer, TEMPLATE)
    with pytest.raises(InputError, match="neither a Jinja template nor a file"):
        tokenize_example(demonstration(messages=CHAT), plain_tokenizer, str(tmp_path / "nothing.jinja"))


def test_many_at_once_are_the_same_as_one_by_one(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [
        demonstration(messages=CHAT),
        demonstration(prompt="a", completion="b"),
        demonstration(messages=CHAT[1:3]),
    ]
    form = choose_format(chat_tokenizer)
    assert tokenize_examples(examples, chat_tokenizer, form) == [tokenize_example(e, chat_tokenizer) for e in examples]
    assert tokenize_prompts(examples, chat_tokenizer, form) == [tokenize_prompt(e, chat_tokenizer) for e in examples]
    assert tokenize_examples([], chat_tokenizer, form) == []


def test_merges_across_the_prompts_end_are_refused() -> None:
    # "Answer: " then "12": alone the prompt ends in a space, with the completion the space belongs to the number.
    template = TEMPLATE.replace("'<|start|>' + message['role'] + '\\n' + ", "message['role'] + ': ' + ").replace(
        "'<|start|>assistant\\n'", "'assistant: '"
    )
    with pytest.raises(InputError, match=r"f\.jsonl:3: the prompt's tokens are not the first tokens"):
        tokenize_example(demonstration(prompt="hi", completion="hello"), make_tokenizer(template))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    # As templates of reasoning models do: only the last turn keeps its thoughts.
    template = TEMPLATE.replace(
        "message['content']", "(message['content'] if loop.last else message['content'].split('!')[-1])"
    )
    chat: list[dict[str, Any]] = [CHAT[1], {"role": "assistant", "content": "think! hello"}, *CHAT[3:]]
    tokenizer = make_tokenizer(template)
    with pytest.raises(InputError, match=r"f\.jsonl:3, turn 2 \(assistant\).*differently.*\"train\": false"):
        tokenize_example(demonstration(messages=chat), tokenizer)
    chat[1] = {**chat[1], "train": False}
    assert spans(tokenizer, tokenize_example(demonstration(messages=chat), tokenizer)) == ["It is 7.<|end|>"]


def test_a_generation_prompt_that_the_whole_text_does_not_hold_is_refused() -> None:
    template = TEMPLATE.replace("'<|start|>assistant\\n'", "'<|start|>assistant\\n<think>'")
    with pytest.raises(InputError, match=r"'<think>' becomes 'hello<\|end\|>|differently"):
        tokenize_example(demonstration(prompt="hi", completion="hello"), make_tokenizer(template))


def test_a_template_without_eos_is_refused() -> None:
    example = demonstration(prompt="hi", completion="hello")
    with pytest.raises(InputError, match=r"does not close.*'<\|end\|>'.*\{\{ eos_token \}\}"):
        tokenize_example(example, make_tokenizer(TEMPLATE.replace("<|end|>", "")))
    other = make_tokenizer(TEMPLATE.replace("<|end|>", "<|stop|>"))
    with pytest.raises(InputError, match=r"set end_of_turn: '<\|stop\|>'"):
        tokenize_example(example, other)
    tokenized = tokenize_example(example, other, end_of_turn="<|stop|>")
    assert spans(other, tokenized) == ["hello<|stop|>"]
    with pytest.raises(InputError, match="no token of the tokenizer"):
        tokenize_example(example, other, end_of_turn="<|never|>")


def test_eos_inside_the_text_is_text_or_refused(
    chat_tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    example = demonstration(prompt="hi", completion="hello<|end|> world")
    for tokenizer in (chat_tokenizer, plain_tokenizer):
        assert spans(tokenizer, tokenize_example(example, tokenizer)) == ["hello<|end|> world<|end|>"]
        assert tokenize_example(example, tokenizer).tokens.count(tokenizer.eos_token_id) == (
            1 if tokenizer is plain_tokenizer else 2
        )
        form = choose_format(tokenizer, special_tokens_in_text="tokens")
        with pytest.raises(InputError, match=r"f\.jsonl:3: the completion holds the text '<\|end\|>'"):
            tokenize_examples([example], tokenizer, form)


def test_what_a_tokenizer_must_have(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"f\.jsonl:3 holds messages.*no chat template"):
        tokenize_example(demonstration(messages=CHAT), plain_tokenizer)
    without = make_tokenizer(template=None)
    without.eos_token = None
    with pytest.raises(InputError, match="no EOS token"):
        tokenize_example(demonstration(prompt="a", completion="b"), without)


def test_a_template_that_refuses_roles_names_the_row() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"f\.jsonl:3: the chat template refuses the roles .*roles must alternate"):
        tokenize_example(demonstration(messages=CHAT), make_tokenizer(template))


EOS = 9
EXAMPLE = TokenizedExample([1, 2, 3, 4, EOS], [False, False, True, True, True], True)


def test_truncation_forges_no_eos() -> None:
    limit = LengthLimit(4, "truncate", "f.jsonl")
    assert limit.apply(EXAMPLE, "f.jsonl:1", frozenset({EOS})) == TokenizedExample(
        [1, 2, 3, 4], EXAMPLE.mask[:4], False
    )
    report = limit.finish()
    assert (report.rows, report.kept, report.truncated, report.longest, report.tokens, report.acted_tokens) == (
        1,
        1,
        1,
        5,
        4,
        2,
    )
    assert "1 truncated" in str(report)


def test_a_row_as_long_as_the_limit_is_kept_whole() -> None:
    limit = LengthLimit(5, "drop", "f")
    assert limit.apply(EXAMPLE, "f:1", frozenset({EOS})) == EXAMPLE
    assert limit.finish().dropped == 0


def test_truncation_between_two_turns_keeps_the_end_of_the_first() -> None:
    two = TokenizedExample([1, 2, EOS, 5, 6, 7, EOS], [False, True, True, False, False, True, True], True)
    cut = LengthLimit(5, "truncate", "f").apply(two, "f:1", frozenset({EOS}))
    assert cut == TokenizedExample([1, 2, EOS], [False, True, True], True)


def test_a_completion_all_truncated_is_refused() -> None:
    with pytest.raises(InputError, match=r"f\.jsonl:5: cut at max_length=2.*the prompt alone has 2.*drop"):
        LengthLimit(2, "truncate", "f.jsonl").apply(EXAMPLE, "f.jsonl:5", frozenset({EOS}))


def test_dropped_rows_are_counted_and_refused_rows_are_named() -> None:
    limit = LengthLimit(4, "drop", "f")
    short = TokenizedExample([1, EOS], [False, True], True)
    assert limit.apply(EXAMPLE, "f:1", frozenset({EOS})) is None
    assert limit.apply(short, "f:2", frozenset({EOS})) == short
    assert limit.finish().dropped == 1
    refuse = LengthLimit(4, "error", "f")
    refuse.apply(EXAMPLE, "f:1", frozenset({EOS}))
    refuse.apply(short, "f:2", frozenset({EOS}))
    with pytest.raises(InputError, match=r"1 of 2 rows are longer than max_length=4 tokens, the longest 5: f:1"):
        refuse.finish()
    nothing = LengthLimit(4, "drop", "f")
    nothing.apply(EXAMPLE, "f:1", frozenset({EOS}))
    with pytest.raises(InputError, match=r"No row of f is left: all 1 row .* shortest has 5\. Raise `data.max_length`"):
        nothing.finish()
    with pytest.raises(InputError, match="cut"):
        LengthLimit(4, "cut", "f")  # type: ignore[arg-type]
