"""From a demonstration to token ids with the mask of the tokens to learn, checked example by example."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import Format, choose_format
from dpr_lightning.data.conversations import Example
from dpr_lightning.data.learnt_parts import OnDropped
from dpr_lightning.data.learnt_text import notice_altered, unknown_token
from dpr_lightning.data.loss_spans import runs, spans_by_turn, token_weights
from dpr_lightning.data.notices import Notices
from dpr_lightning.data.rendering import check_no_stop, render_prompt, render_turns
from dpr_lightning.data.special_text import SpecialTextEncoder
from dpr_lightning.data.template_use import notice_without_template
from dpr_lightning.errors import InputError

TOKENIZATION_VERSION = 5
"""Part of every cache's key: raise it when a change of this package changes the tokens or the mask of a text."""


class TokenizedExample(NamedTuple):
    """``tokens`` of one demonstration; ``mask``: True for tokens to learn, EOS included; its last entry is True.

    ``terminated``: the last token to learn is a real EOS. ``weights`` of the loss of each token to learn, from the
    row's ``loss_spans``; None: all are 1. A token of weight 0 is not in the mask.
    """

    tokens: list[int]
    mask: list[bool]
    terminated: bool
    weights: list[float] | None = None


def tokenize_example(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    end_of_turn: str | None = None,
) -> TokenizedExample:
    """Tokenise one demonstration; see :func:`tokenize_examples`."""
    return tokenize_examples([example], tokenizer, choose_format(tokenizer, chat_template, end_of_turn))[0]


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
    notices: Notices | None = None,
    on_dropped: OnDropped = "error",
) -> list[TokenizedExample]:
    """Tokenise demonstrations, many at once because fast tokenizers work in parallel.

    With a chat template the whole conversation is rendered and tokenised once; in it, every trained turn must start
    where the tokens of its prompt end, and a stop token must close it. Everything after the last trained turn is cut
    off, such as the template's closing newline: no loss depends on it.

    Without a template the token ids of prompt, completion and EOS are joined, so a token always ends where the prompt
    does, as it will when the policy samples. (Tokenizers that put a space before every text put one before the
    completion.)

    Args:
        examples: the demonstrations.
        tokenizer: of the policy.
        form: chat template and stop tokens.
        notices: counts what the template leaves out of rows; None: do not count.
        on_dropped: ``error`` or ``warn``, where the template leaves out a part of a turn to learn.

    Raises:
        InputError: names the row and the reason.
    """
    notices = notices if notices is not None else Notices()
    encoder = SpecialTextEncoder(tokenizer, form)
    protected = [encoder.protect(example, notices) for example in examples]
    changed = [after is not before for after, before in zip(protected, examples, strict=True)]
    if form.chat_template is None:
        notice_without_template(examples, notices)
        return _tokenize_plain(protected, tokenizer, form, encoder, changed, notices)
    rendered = []
    for example, spells in zip(protected, changed, strict=True):
        try:
            rendered.append(render_turns(example, tokenizer, form, notices, on_dropped))
        except InputError as error:
            raise InputError(encoder.restore_message(str(error)) if spells else str(error)) from error
    texts = [text for turns in rendered for text in (turns.whole, *turns.prompts)]
    owners = [index for index, turns in enumerate(rendered) for _ in range(1 + len(turns.prompts))]
    encoded = iter(
        encoder.encode(texts, [examples[index].location for index in owners], [changed[index] for index in owners])
    )
    tokenized = []
    for example, spells, turns in zip(examples, changed, rendered, strict=True):
        whole, prompts = next(encoded), [next(encoded) for _ in turns.prompts]
        row = _mask_turns(example, tokenizer, form, whole, prompts)
        for prompt, text in zip(prompts, turns.prompts, strict=True):
            stop = next(index for index in range(len(prompt), len(row.tokens)) if row.tokens[index] in form.stop_ids)
            learnt = turns.whole[len(text) :]
            expected = encoder.restore(learnt) if spells else learnt
            notice_altered(tokenizer, row.tokens[len(prompt) : stop + 1], expected, example.location, notices)
        tokenized.append(_weighted(example, tokenizer, row))
    return tokenized


def tokenize_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
) -> list[int]:
    """The tokens of a row's prompt: those that precede the completion in the same row's demonstration.

    Raises:
        InputError: names the row and the reason.
    """
    return tokenize_prompts([example], tokenizer, choose_format(tokenizer, chat_template))[0]


def tokenize_prompts(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: Format, notices: Notices | None = None
) -> list[list[int]]:
    """The prompts' tokens, many at once; see :func:`tokenize_prompt`."""
    notices = notices if notices is not None else Notices()
    encoder = SpecialTextEncoder(tokenizer, form)
    protected = [encoder.protect(example, notices) for example in examples]
    changed = [after is not before for after, before in zip(protected, examples, strict=True)]
    if form.chat_template is None:
        notice_without_template(examples, notices)
        encoded = _encode_plain_prompts(protected, tokenizer, encoder, changed)
    else:
        texts = [render_prompt(example, tokenizer, form, notices) for example in protected]
        encoded = encoder.encode(texts, [example.location for example in examples], changed)
    unknown = unknown_token(tokenizer, form)
    for example, tokens in zip(examples, encoded, strict=True):
        if not tokens:
            raise InputError(f"{example.location}: the prompt has no tokens. Give it at least one word.")
        if unknown in tokens:
            notices.add(
                f"a prompt has characters that the tokenizer has no token for ({tokenizer.unk_token!r})",
                example.location,
            )
    return encoded


def _mask_turns(
    example: Example, tokenizer: PreTrainedTokenizerBase, form: Format, tokens: list[int], prompts: list[list[int]]
) -> TokenizedExample:
    mask = [False] * len(tokens)
    end = 0
    for prompt in prompts:
        start = len(prompt)
        if tokens[:start] != prompt:
            raise InputError(_boundary(example, tokenizer, tokens, prompt))
        stop = next((index for index in range(start, len(tokens)) if tokens[index] in form.stop_ids), None)
        if stop is None or start == 0:
            raise InputError(
                f"{example.location}: after templating, "
                + ("nothing stands before the completion" if start == 0 else "no EOS token closes the completion")
                + ". Check the chat template and the tokenizer's special tokens."
            )
        end = stop + 1
        mask[start:end] = [True] * (end - start)
    return TokenizedExample(tokens[:end], mask[:end], True)


def _weighted(example: Example, tokenizer: PreTrainedTokenizerBase, row: TokenizedExample) -> TokenizedExample:
    """The row with the weights that its ``loss_spans`` give its tokens.

    Args:
        example: as it is in the file.
        tokenizer: of the policy.
        row: its tokens.

    Raises:
        InputError: a span does not fit the row.
    """
    if not example.loss_spans:
        return row
    contents, weights = example.learnt_contents, [1.0] * len(row.tokens)
    of_turns = spans_by_turn(example.loss_spans, contents, example.location)
    for (start, end), content, spans in zip(runs(row.mask), contents, of_turns, strict=True):
        if spans:
            weights[start:end] = token_weights(tokenizer, row.tokens[start:end], content, spans, example.location)
    mask = [acted and weight > 0 for acted, weight in zip(row.mask, weights, strict=True)]
    end = len(mask) - mask[::-1].index(True)  # the token that ends the turn is in no span
    uniform = all(weight == 1 for weight, acted in zip(weights, mask, strict=True) if acted)
    return TokenizedExample(row.tokens[:end], mask[:end], row.terminated, None if uniform else weights[:end])


def _tokenize_plain(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    form: Format,
    encoder: SpecialTextEncoder,
    changed: Sequence[bool],
    notices: Notices,
) -> list[TokenizedExample]:
    completions = []
    for example in examples:
        if not isinstance(example.completion, str):
            raise InputError(
                f"{example.location} {_NO_TEMPLATE}" if example.completion else f"{example.location} is a prompt."
            )
        check_no_stop(example, example.completion, form)
        completions.append(example.completion)
    prompts = _encode_plain_prompts(examples, tokenizer, encoder, changed)
    encoded = encoder.encode(completions, [example.location for example in examples], changed)
    tokenized = []
    for example, spells, completion, prompt, answer in zip(
        examples, changed, completions, prompts, encoded, strict=True
    ):
        if not answer and completion:
            raise InputError(f"{example.location}: the completion has no tokens, though its text is not empty.")
        expected = encoder.restore(completion) if spells else completion
        notice_altered(tokenizer, answer, expected, example.location, notices)
        answer = [*answer, int(tokenizer.eos_token_id)]
        row = TokenizedExample(prompt + answer, [False] * len(prompt) + [True] * len(answer), True)
        tokenized.append(_weighted(example, tokenizer, row))
    return tokenized


_NO_TEMPLATE = (
    "holds messages, but the tokenizer has no chat template. Take the tokenizer of a chat model, set `chat_template` "
    "to a Jinja template or to a file with one, or give `prompt` and `completion` as strings."
)


def _encode_plain_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    encoder: SpecialTextEncoder,
    changed: Sequence[bool],
) -> list[list[int]]:
    texts = []
    for example in examples:
        if not isinstance(example.prompt, str):
            raise InputError(f"{example.location} {_NO_TEMPLATE}")
        texts.append(example.prompt)
    prompts = encoder.encode(texts, [example.location for example in examples], changed, add_special_tokens=True)
    for example, prompt in zip(examples, prompts, strict=True):
        # Some tokenizers close every text with EOS, but here an answer follows.
        while prompt and prompt[-1] == tokenizer.eos_token_id and not example.prompt_text.endswith(tokenizer.eos_token):
            prompt.pop()
        if not prompt:
            raise InputError(f"{example.location}: the prompt has no tokens. Give it at least one word.")
        if set(prompt) <= {tokenizer.eos_token_id, tokenizer.pad_token_id}:
            raise InputError(
                f"{example.location}: the prompt is nothing but the token that ends an answer, "
                f"{tokenizer.eos_token!r}. Remove the row, or give the prompt a word."
            )
    return prompts


def _boundary(example: Example, tokenizer: PreTrainedTokenizerBase, tokens: list[int], prompt: list[int]) -> str:
    """The error message for a prompt whose tokens are not the first tokens of the demonstration."""
    same = next((index for index, (a, b) in enumerate(zip(tokens, prompt, strict=False)) if a != b), len(tokens))
    alone = tokenizer.convert_ids_to_tokens(prompt[same : same + 4])
    together = tokenizer.convert_ids_to_tokens(tokens[same : same + 4])
    return (
        f"{example.location}: the prompt's tokens are not the first tokens of prompt and completion together. From "
        f"token {same} on the prompt alone reads {alone}, with the completion {together}: the tokenizer merges across "
        "the place where the completion starts. Let the template's generation prompt end in a newline or a special "
        "token, or move a space from its end into the completion."
    )
