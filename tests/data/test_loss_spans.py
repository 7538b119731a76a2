"""Weights of parts of a completion: from characters to tokens, through templates, caches and batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpr_lightning.data import TokenizedDataset, open_rows, tokenize_rows
from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.conversations import to_demonstration, to_prompt
from dpr_lightning.data.loss_spans import content_start, token_span
from dpr_lightning.data.rows import Row
from dpr_lightning.data.token_cache import load_or_tokenize
from dpr_lightning.data.token_spans import spans_of_tokens
from dpr_lightning.data.tokenization import TokenizedExample, tokenize_example
from dpr_lightning.errors import InputError
from dpr_lightning.rollouts import decode_tokens

CHAT = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hello world"},
    {"role": "user", "content": "What is 3+4?"},
    {"role": "assistant", "content": "It is 7."},
]
LEARNT = "12 and Answer: 7"


def tokenized(tokenizer: PreTrainedTokenizerBase, spans: Any, **row: Any) -> TokenizedExample:
    row = row or {"prompt": "Answer: ", "completion": LEARNT}
    return tokenize_example(to_demonstration(Row("f.jsonl", 3, {**row, "loss_spans": spans})), tokenizer)


def text_of(tokenizer: PreTrainedTokenizerBase, example: TokenizedExample, *, learnt: bool) -> str:
    """The text of the tokens that are learnt, or of those after the first one that are not."""
    first = example.mask.index(True)
    pairs = list(zip(example.tokens, example.mask, strict=True))[0 if learnt else first :]
    return decode_tokens(tokenizer, [token for token, acted in pairs if acted == learnt])


def test_tokens_of_a_span_are_not_learnt(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    start = LEARNT.index("Answer")
    example = tokenized(plain_tokenizer, [{"start": start, "end": start + 6, "text": "Answer"}])
    whole = tokenized(plain_tokenizer, None)
    assert example.tokens == whole.tokens
    assert example.weights is None
    assert "Answer" in text_of(plain_tokenizer, example, learnt=False)
    assert "Answer" not in text_of(plain_tokenizer, example, learnt=True)
    assert text_of(plain_tokenizer, example, learnt=True).replace("<|end|>", "").startswith("12 and")
    assert example.mask[-1]


def test_weights_are_those_of_the_lowest_span(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    spans = [{"start": 0, "end": 2, "weight": 0.25}, {"start": 1, "end": 6, "weight": 0.5}, {"start": 7, "end": 8}]
    example = tokenized(plain_tokenizer, spans)
    whole = tokenized(plain_tokenizer, None)
    assert example.weights is not None
    first = whole.mask.index(True)
    covered = 0
    for index in range(first, len(whole.tokens) - 1):
        width = len(decode_tokens(plain_tokenizer, [whole.tokens[index]]))
        inside = {span.get("weight", 0.0) for span in spans
                  if span["start"] < covered + width and covered < span["end"]}  # fmt: skip
        expected = min(inside, default=1.0)
        assert example.mask[index] == (expected > 0)
        assert example.weights[index] == expected
        covered += width
    assert covered == len(LEARNT)
    assert example.weights[-1] == 1.0


def test_a_span_is_in_the_content_of_its_turn(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    whole = tokenized(chat_tokenizer, None, messages=CHAT)
    for turn, word in ((0, "world"), (1, "7"), (-1, "7")):
        content = CHAT[1 if turn == 0 else 3]["content"]
        start = content.index(word)
        span = {"start": start, "end": start + len(word), "turn": turn, "text": word}
        example = tokenized(chat_tokenizer, [span], messages=CHAT)
        assert example.tokens == whole.tokens
        dropped = [
            token
            for token, acted, before in zip(example.tokens, example.mask, whole.mask, strict=True)
            if before and not acted
        ]
        assert decode_tokens(chat_tokenizer, dropped).strip() == word


def test_prompts_and_metadata_are_as_without_spans(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "hello", "completion": "world", "loss_spans": [{"start": 0, "end": 9}]}
    assert to_prompt(Row("f", 1, row)).loss_spans == ()  # an answer of another length is sampled
    assert "loss_spans" not in to_prompt(Row("f", 1, row)).metadata
    renamed = to_demonstration(
        Row("f", 1, {"prompt": "hello", "completion": "world", "spans": [{"start": 0, "end": 2}]}),
        {"loss_spans": "spans"},
    )
    assert renamed.loss_spans[0].end == 2


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ("{", "no JSON"),
        ({"start": 0, "end": 1}, "is a list of"),
        ([3], "is a list of"),
        ([{"start": 0}], r"loss_spans\[0\].end"),
        ([{"start": 0, "end": True}], r"loss_spans\[0\].end"),
        ([{"start": 5, "end": 5}], "0 ≤ start < end"),
        ([{"start": -1, "end": 5}], "0 ≤ start < end"),
        ([{"start": 0, "end": 2, "weight": -0.5}], "from 0"),
        ([{"start": 0, "end": 2, "weight": float("nan")}], "from 0"),
        ([{"start": 0, "end": 2, "weight": "half"}], "from 0"),
        ([{"start": 0, "end": 2, "wieght": 1}], "unknown key 'wieght'"),
        ([{"start": 0, "end": 2, "turn": 1}], "names turn 1, and 1 turn is learnt"),
        ([{"start": 0, "end": 2, "turn": -2}], "counts the turns"),
        ([{"start": 0, "end": 2, "text": 3}], "from start to end"),
        ([{"start": 0, "end": 2, "text": "13"}], "has '12': it has changed"),
        ([{"start": 0, "end": 999}], "characters 0 to 999, and the turn has 16"),
    ],
)
def test_wrong_spans_are_refused(plain_tokenizer: PreTrainedTokenizerFast, spans: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        tokenized(plain_tokenizer, spans)
    assert "f.jsonl:3" in str(error.value)


def test_a_text_that_the_tokenizer_changes_is_refused(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    lower: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=type(plain_tokenizer.backend_tokenizer).from_str(plain_tokenizer.backend_tokenizer.to_str()),
        eos_token="<|end|>",
        pad_token="<pad>",
    )
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="decode to another text"):
        tokenized(lower, [{"start": 0, "end": 2}])
    whole = tokenized(lower, None)
    assert whole.weights is None
    # Such a row can be scored and listed all the same; nothing in it can be marked.
    example = to_demonstration(Row("f.jsonl", 3, {"prompt": "Answer: ", "completion": LEARNT}))
    assert spans_of_tokens(example, whole, [True] * sum(whole.mask), lower) == []


def data_set(
    tokenizer: PreTrainedTokenizerFast, path: str, *, weighted: bool = True, max_length: int | None = None
) -> TokenizedDataset:
    form = choose_format(tokenizer)
    options: Any = {"max_length": max_length, "over_length": "truncate"} if max_length else {}
    return tokenize_rows(open_rows(path), tokenizer, form, weighted=weighted, **options)


ROWS = [
    {"prompt": "hello ", "completion": "there, hello"},
    {"prompt": "Answer: ", "completion": LEARNT, "loss_spans": [{"start": 0, "end": 2, "weight": 0.5}]},
    {"prompt": "Answer: ", "completion": LEARNT, "loss_spans": [{"start": 0, "end": 2}]},
]


def test_batches_have_weights_and_their_sum(
    plain_tokenizer: PreTrainedTokenizerFast, write_rows: Callable[..., str], tmp_path: Path
) -> None:
    path = write_rows(ROWS)
    data = data_set(plain_tokenizer, path)
    cached = [
        load_or_tokenize(tmp_path / "cache", "k" * 64, path, lambda: data_set(plain_tokenizer, path)) for _ in range(2)
    ]
    for each in (data, *cached):
        batch = each.batch(np.arange(3), 1.0, 0)
        assert batch.weights is not None
        sums = (batch.weights * batch.mask).sum(1)
        np.testing.assert_allclose(sums.numpy(), each.loss_weights)
        assert sums[0] == batch.mask[0].sum() == each.acted_tokens[0]
        halved = int((batch.weights[1] == 0.5).sum())
        assert halved > 0
        assert sums[1] == each.acted_tokens[1] - 0.5 * halved
        assert each.acted_tokens[1] - each.acted_tokens[2] == halved
        assert each.example(1).weights == batch.weights[1, : each.lengths[1]].tolist()
    some = data.select(np.array([2, 1]))
    np.testing.assert_allclose(some.loss_weights, data.loss_weights[[2, 1]])


def test_without_fractions_there_are_no_weights(
    plain_tokenizer: PreTrainedTokenizerFast, write_rows: Callable[..., str]
) -> None:
    data = data_set(plain_tokenizer, write_rows([ROWS[0], ROWS[2]]))
    assert data.batch(np.arange(2), 1.0, 0).weights is None
    assert data.loss_weights is data.acted_tokens
    every = data_set(plain_tokenizer, write_rows(ROWS), weighted=False)
    assert every.acted_tokens[1] == every.acted_tokens[2] > data.acted_tokens[1]


def test_a_cut_row_has_the_weights_of_its_tokens(
    plain_tokenizer: PreTrainedTokenizerFast, write_rows: Callable[..., str]
) -> None:
    whole = data_set(plain_tokenizer, write_rows([ROWS[1]]))
    cut = data_set(plain_tokenizer, write_rows([ROWS[1]]), max_length=int(whole.lengths[0]) - 2)
    assert cut.example(0).weights == (whole.example(0).weights or [])[:-2]


def test_characters_of_tokens_are_the_way_back(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """What a token covers is what masking it covers: from tokens to a span, and to the same tokens."""
    content = "hello world, né 日本 😀 Answer: 7"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    whole = tokenized(chat_tokenizer, None, messages=chat)
    first = whole.mask.index(True)
    learnt = whole.tokens[first:]
    start = content_start(chat_tokenizer, learnt, content)
    assert start is not None
    for index in range(len(learnt) - 1):
        covered = token_span(chat_tokenizer, learnt, start, content, index, index + 1)
        if covered is None:  # a byte of a character, or white space
            assert not decode_tokens(chat_tokenizer, [learnt[index]]).strip("\N{REPLACEMENT CHARACTER} ")
            continue
        example = tokenized(chat_tokenizer, [{"start": covered[0], "end": covered[1]}], messages=chat)
        assert not example.mask[first + index]
        assert sum(whole.mask) - sum(example.mask) <= 4  # the bytes of one character
    assert token_span(chat_tokenizer, learnt, start, content, len(learnt) - 1, len(learnt)) is None


def test_loss_spans_reach_the_gradient(tiny_policy_folder: Path) -> None:
    """The loss of a step is Σ w·NLL / Σ w of the plain model."""
    from transformers import AutoModelForCausalLM

    from dpr_lightning.modules import SupervisedIRL
    from dpr_lightning.policies import PolicySpec
    from dpr_lightning.types import DemonstrationBatch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 20, (3, 12), generator=generator)
    mask = torch.arange(12).expand(3, 12) >= torch.tensor([[3], [5], [2]])
    mask = mask & (torch.rand(3, 12, generator=generator) > 0.2)
    weights = torch.rand(3, 12, generator=generator)
    total = (weights * mask).sum()
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_folder, dtype=torch.float64)
    logprobs = model(input_ids=tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    for loss, expected in (
        ("sft", -(weights * mask)[:, 1:] * logprobs),
        ("dft", -(weights * mask)[:, 1:] * logprobs.detach().exp() * logprobs),
    ):
        kind: Any = loss
        module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), kind)
        module.policy = AutoModelForCausalLM.from_pretrained(tiny_policy_folder, dtype=torch.float64)
        rows = torch.arange(3)
        batch = DemonstrationBatch(tokens, mask, rows > 5, total, rows, weights)
        result = module._imitated(batch)[0]
        torch.testing.assert_close(result, expected.sum() / total, check_dtype=False)
        gradient = torch.autograd.grad(expected.sum() / total, model.lm_head.weight, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(result, module.policy.lm_head.weight)[0], gradient)
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder)), "iq_learn")
    module.policy = model
    with pytest.raises(InputError, match="takes no weights"):
        module._imitated(batch)
