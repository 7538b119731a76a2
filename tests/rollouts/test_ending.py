"""Answers that end at a text: the same answers as ever, cut where the text is complete."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.selection import best_of
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rollouts import SamplingOptions, sample
from dpr_lightning.rollouts.ending import StopStrings
from dpr_lightning.types import Rollouts

TEXTS = ["so the sum is 12.\n\nAnswer: 12\n", "也许 答案。 that is，好。", "END of it\nEND", "a END. b"] * 4
PROMPTS, EOS, PAD = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]], 0, 1


def byte_level() -> PreTrainedTokenizerBase:
    """Bytes and pairs of them: a character beyond ASCII is several tokens, one of which may end another."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet)
    inner.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def spaced() -> PreTrainedTokenizerBase:
    """Words that carry the space before them, which decoding leaves out at the beginning of a text."""
    pieces = ["<eos>", "<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "a", "E", "N", "D", "▁a", "▁E", "▁EN", "ND", "▁END", "▁is", "▁the", ".", "▁12", "s"]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *words])}
    inner = Tokenizer(models.BPE(vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="module")
def policy(tiny_policy_folder: Path) -> torch.nn.Module:
    model, _ = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    model.resize_token_embeddings(300)  # type: ignore[operator]
    return model


def answers(rollouts: Rollouts) -> list[list[int]]:
    return [row[acted].tolist() for row, acted in zip(rollouts.tokens, rollouts.mask, strict=True)]


@pytest.mark.parametrize(
    ("tokenizer", "strings", "liked"),
    [
        (byte_level(), ["\n\n", "EN"], ["Ċ", "E", "N"]),
        (byte_level(), ["。", "é"], ["ã", "Ģ", "Ĥ", "Ã", "©"]),
        (byte_level(), [" ", "ab"], ["a", "b"]),
        (spaced(), [" END", "."], ["▁EN", "D", "▁END", "E", "ND"]),
        (spaced(), ["D ", "\n"], ["D", "▁a", "ND", "▁is"]),
    ],
    ids=["newlines", "characters of several tokens", "a space", "words", "the space of the next word"],
)
def test_answers_are_those_without_cut_where_a_text_is_complete(
    policy: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, strings: list[str], liked: list[str]
) -> None:
    with torch.no_grad():
        head = policy.get_output_embeddings()  # type: ignore[operator]
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        head.bias[torch.tensor(tokenizer.convert_tokens_to_ids(liked))] = 5.0
    options = {"stop_tokens": [EOS], "pad_token": PAD, "num_samples": 30, "seed": 4}
    plain = sample(policy, PROMPTS, SamplingOptions(40), **options)  # type: ignore[arg-type]
    stopped = SamplingOptions(40, stop_strings=tuple(strings))
    result = sample(policy, PROMPTS, stopped, tokenizer=tokenizer, **options)  # type: ignore[arg-type]
    head.bias = None
    cut = 0
    for index, (whole, ours) in enumerate(zip(answers(plain), answers(result), strict=True)):
        texts = [tokenizer.decode(whole[:end], skip_special_tokens=False) for end in range(1, len(whole) + 1)]
        ends = next((end for end, text in enumerate(texts, 1) if any(each in text for each in strings)), None)
        assert ours == whole[:ends]
        torch.testing.assert_close(result.logprob[index, : len(ours)], plain.logprob[index, : len(ours)])
        assert bool(result.terminated[index]) == (ends is not None or bool(plain.terminated[index]))
        cut += ends is not None
    assert cut > 10


@pytest.mark.parametrize("string", ["\n", "\n\n", "本\n"])
@pytest.mark.parametrize(
    "answer", ["a日本語\n", "a日本語日本語\n", "a日本語日本語日\n\n", "日本語日本語日本\n\nb", "日本語日本\n"]
)
@pytest.mark.parametrize("tokenizer", [spaced(), byte_level()], ids=["bytes as tokens", "byte-level"])
def test_bytes_before_a_stop_string_are_read_with_it(
    tokenizer: PreTrainedTokenizerBase, answer: str, string: str
) -> None:
    """Some decoders make whole runs of bytes one text, and of a run that is cut nothing."""
    tokens: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    stop = StopStrings([string], tokenizer)
    could = stop.could_finish(len(tokenizer))
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], skip_special_tokens=False)
        assert stop.ends(tokens[:end]) == (string in text)
        if string in text:
            assert could[tokens[end - 1]]
            return
    assert string not in answer


def test_special_tokens_are_text_of_an_answer() -> None:
    tokenizer = byte_level()
    stop = StopStrings(["b<pad>"], tokenizer)
    a, b, pad = tokenizer.convert_tokens_to_ids(["a", "b", "<pad>"])
    assert [bool(stop.could_finish(300)[token]) for token in (a, b, pad)] == [False, False, True]
    assert stop.ends([a, b, pad])
    assert not stop.ends([b, a, pad])
    # As text of ordinary tokens too, whatever they are.
    assert stop.ends(tokenizer("b<pad>", split_special_tokens=True)["input_ids"])


def test_few_tokens_are_looked_at() -> None:
    tokenizer = byte_level()
    could = StopStrings(["\n\n"], tokenizer).could_finish(320)
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    assert could.shape == (320,)
    assert [index for index in range(320) if could[index]] == [
        index for index, text in enumerate(texts) if text.startswith("\n") or "\n\n" in text
    ]


def test_a_text_may_begin_in_one_chunk_and_end_in_the_next(policy: torch.nn.Module) -> None:
    tokenizer = byte_level()
    options = SamplingOptions(24, stop_strings=("ab", "ba", "e"))
    fixed = {"stop_tokens": [EOS], "pad_token": PAD, "seed": 2, "num_samples": 40}
    with torch.no_grad():
        head = policy.get_output_embeddings()  # type: ignore[operator]
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        head.bias[[tokenizer.convert_tokens_to_ids(letter) for letter in "ab"]] = 3.0
    result = best_of(
        policy,
        lambda rows: torch.zeros(len(rows.tokens)),
        PROMPTS,
        options,
        candidates=1,
        chunk=1,
        tokenizer=tokenizer,
        **fixed,  # type: ignore[arg-type]
    )
    head.bias = None
    ended = 0
    for answer, terminated in zip(answers(result), result.terminated.tolist(), strict=True):
        before, text = (tokenizer.decode(part, skip_special_tokens=False) for part in (answer[:-1], answer))
        assert not any(string in before for string in options.stop_strings)
        assert terminated == (answer[-1] == EOS or any(string in text for string in options.stop_strings))
        ended += "ab" in text or "ba" in text
    assert ended > 10


@pytest.mark.parametrize("strings", ["\n\n", [""], ["a", ""]])
def test_stop_strings_that_are_none_are_refused(strings: list[str]) -> None:
    with pytest.raises(InputError, match="`stop_strings` is a list of texts"):
        SamplingOptions(4, stop_strings=strings)  # type: ignore[arg-type]


def test_a_tokenizer_is_needed(policy: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="takes the tokenizer"):
        sample(policy, PROMPTS, SamplingOptions(4, stop_strings=("a",)), stop_tokens=[EOS], pad_token=PAD)
