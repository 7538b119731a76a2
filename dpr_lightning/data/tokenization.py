"""From a demonstration to token ids with the mask of what the policy says, checked example by example."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.conversations import Example, Message
from dpr_lightning.errors import InputError

PLAIN = "none"
TOKENIZATION_VERSION = 1
"""Part of every cache's key: raise it when the same text would become other tokens or another mask."""


class TokenizedExample(NamedTuple):
    """``tokens`` of one demonstration; ``mask``: what the policy says, EOS included; it ends with a said token.

    ``terminated``: the last said token is a real EOS.
    """

    tokens: list[int]
    mask: list[bool]
    terminated: bool


class Format(NamedTuple):
    """How text becomes tokens: the ``chat_template`` (None: plain text) and the tokens that end a turn."""

    chat_template: str | None
    stops: tuple[str, ...]
    stop_ids: frozenset[int]


def choose_format(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, end_of_turn: str | None = None
) -> Format:
    """Settle how text becomes tokens.

    Args:
        tokenizer: its own chat template is used when there is one.
        chat_template: use this one instead: a Jinja template, or the path of a file with one; ``none``: plain text.
        end_of_turn: a token other than EOS with which the template closes the assistant's turn and at which
            sampling stops too.

    Raises:
        InputError: the tokenizer has no EOS token, or ``end_of_turn`` is no token of it.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so a policy could never learn to stop. Set "
            "`eos_token` in its tokenizer_config.json."
        )
    stops, stop_ids = [str(tokenizer.eos_token)], [int(tokenizer.eos_token_id)]
    if end_of_turn is not None:
        identifier = tokenizer.get_vocab().get(end_of_turn)
        if identifier is None:
            raise InputError(f"`end_of_turn` {end_of_turn!r} is no token of the tokenizer {tokenizer.name_or_path!r}.")
        stops.append(end_of_turn)
        stop_ids.append(int(identifier))
    return Format(_template(tokenizer, chat_template), tuple(stops), frozenset(stop_ids))


def carried_format(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> Format:
    """The format that :func:`carry_format` wrote into a policy: its tokenizer's template, and the tokens it stops at.

    Args:
        tokenizer: saved with the policy.
        stops: :func:`dpr_lightning.policies.stop_token_ids` of the policy, or those saved in its folder.
    """
    form = choose_format(tokenizer)
    return form._replace(stops=tuple(tokenizer.convert_ids_to_tokens(list(stops))), stop_ids=frozenset(stops))


def carry_format(form: Format, policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``form`` into what is saved with a policy: its tokenizer's template, the tokens it stops at."""
    tokenizer.chat_template = form.chat_template
    generation: Any = getattr(policy, "generation_config", None)
    if generation is None:  # a verifier head writes nothing, and has nowhere to stop
        return
    held = generation.eos_token_id
    stops = {*form.stop_ids, *(held if isinstance(held, list) else [held] if held is not None else [])}
    generation.eos_token_id = sorted(stops) if len(stops) > 1 else stops.pop()


def tokenize_example(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    end_of_turn: str | None = None,
) -> TokenizedExample:
    """Tokenise one demonstration; see :func:`tokenize_examples`."""
    return tokenize_examples([example], tokenizer, choose_format(tokenizer, chat_template, end_of_turn))[0]


def tokenize_examples(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: Format
) -> list[TokenizedExample]:
    """Tokenise demonstrations, many at once because fast tokenizers work in parallel.

    With a chat template the whole conversation is rendered and tokenised once; in it, every trained turn must start
    where the tokens of its own prompt end, and a stop token must close it. Nothing after the last trained turn is kept,
    the template's closing newline included: no loss reads it.

    Without a template the token ids of prompt, completion and EOS are joined, so a token always ends where the prompt
    does, as it will when the policy is asked. (Tokenizers that put a space before every text put one before the
    completion.)

    Raises:
        InputError: names the row and the reason.
    """
    if form.chat_template is None:
        return _tokenize_plain(examples, tokenizer, form)
    rendered = [_render_turns(example, tokenizer, form) for example in examples]
    texts = [text for turns in rendered for text in (turns.whole, *turns.prompts)]
    encoded = iter(_encode(tokenizer, texts))
    return [
        _mask_turns(example, tokenizer, form, next(encoded), [next(encoded) for _ in turns.prompts])
        for example, turns in zip(examples, rendered, strict=True)
    ]


def tokenize_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
) -> list[int]:
    """The tokens that a policy is asked with: those that stand before the same row's demonstration.

    Raises:
        InputError: names the row and the reason.
    """
    return tokenize_prompts([example], tokenizer, choose_format(tokenizer, chat_template))[0]


def tokenize_prompts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: Format) -> list[list[int]]:
    """The prompts' tokens, many at once; see :func:`tokenize_prompt`."""
    if form.chat_template is None:
        return _encode_plain_prompts(examples, tokenizer)
    texts = [_render(example, example.prompt_messages(), tokenizer, form, prompt=True) for example in examples]
    encoded = _encode(tokenizer, texts)
    for example, tokens in zip(examples, encoded, strict=True):
        if not tokens:
            raise InputError(f"{example.place}: the prompt has no tokens. Give it at least one word.")
    return encoded


class _Turns(NamedTuple):
    """The text of a conversation, and that of the prompt of each trained turn."""

    whole: str
    prompts: list[str]


def _render_turns(example: Example, tokenizer: PreTrainedTokenizerBase, form: Format) -> _Turns:
    messages = (*example.prompt_messages(), *example.completion_messages())
    trained = [place for place, message in enumerate(messages) if message.train]
    if not trained:
        raise InputError(f"{example.place} has nothing to learn: it is a prompt alone.")
    whole = _render(example, messages[: trained[-1] + 1], tokenizer, form, prompt=False)
    prompts = []
    for place in trained:
        prompt = _render(example, messages[:place], tokenizer, form, prompt=True)
        last = place == trained[-1]
        through = whole if last else _render(example, messages[: place + 1], tokenizer, form, prompt=False)
        turn = f"turn {place + 1} ({messages[place].role})"
        if not through.startswith(prompt) or not whole.startswith(through.rstrip()):
            raise InputError(
                f"{example.place}, {turn}: the chat template writes the conversation so far differently once more "
                f"follows, {_difference(prompt, through) or _difference(through.rstrip(), whole)}. The policy would be "
                "trained on other tokens than it is asked with. Use a template that only appends, or give each turn a "
                'row of its own, or mark earlier turns "train": false.'
            )
        _check_closed(example, turn, messages[place], through[len(prompt) :], tokenizer, form)
        prompts.append(prompt)
    return _Turns(whole, prompts)


def _check_closed(
    example: Example, turn: str, message: Message, said: str, tokenizer: PreTrainedTokenizerBase, form: Format
) -> None:
    """The template must end what the assistant says with a stop token, and the content must not hold one."""
    _check_no_stop(example, message.content, form)
    if said.rstrip().endswith(form.stops):
        return
    ends = said.rstrip()[-30:]
    special = [token for token in map(str, tokenizer.all_special_tokens) if said.rstrip().endswith(token)]
    if not special:
        closing = re.search(r"<\|?[^<>\s]+\|?>$", said.rstrip())
        special = [closing.group()] if closing and closing.group() in tokenizer.get_vocab() else []
    remedy = (
        f"If sampling is to stop at {special[0]!r}, set end_of_turn: {special[0]!r}, or make it the tokenizer's EOS."
        if special
        else "Put {{ eos_token }} after the assistant's content in the chat template."
    )
    raise InputError(
        f"{example.place}, {turn}: the chat template does not close the assistant's turn with the EOS token "
        f"{form.stops[0]!r}; it ends in {ends!r}. The policy would never learn to stop. {remedy}"
    )


def _mask_turns(
    example: Example, tokenizer: PreTrainedTokenizerBase, form: Format, tokens: list[int], prompts: list[list[int]]
) -> TokenizedExample:
    mask = [False] * len(tokens)
    end = 0
    for prompt in prompts:
        start = len(prompt)
        if tokens[:start] != prompt:
            raise InputError(_boundary(example, tokenizer, tokens, prompt))
        stop = next((place for place in range(start, len(tokens)) if tokens[place] in form.stop_ids), None)
        if stop is None or start == 0:
            raise InputError(
                f"{example.place}: after templating, "
                + ("nothing stands before the completion" if start == 0 else "no EOS token closes the completion")
                + ". Check the chat template and the tokenizer's special tokens."
            )
        end = stop + 1
        mask[start:end] = [True] * (end - start)
    return TokenizedExample(tokens[:end], mask[:end], True)


def _tokenize_plain(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: Format
) -> list[TokenizedExample]:
    completions = []
    for example in examples:
        if not isinstance(example.completion, str):
            raise InputError(
                f"{example.place} {_NO_TEMPLATE}" if example.completion else f"{example.place} is a prompt."
            )
        _check_no_stop(example, example.completion, form)
        completions.append(example.completion)
    prompts = _encode_plain_prompts(examples, tokenizer)
    tokenized = []
    for example, prompt, said in zip(examples, prompts, _encode(tokenizer, completions), strict=True):
        if not said:
            raise InputError(f"{example.place}: the completion has no tokens, though its text is not empty.")
        said = [*said, int(tokenizer.eos_token_id)]
        tokenized.append(TokenizedExample(prompt + said, [False] * len(prompt) + [True] * len(said), True))
    return tokenized


_NO_TEMPLATE = (
    "holds messages, but the tokenizer has no chat template. Take the tokenizer of a chat model, set `chat_template` "
    "to a Jinja template or to a file with one, or give `prompt` and `completion` as strings."
)


def _encode_plain_prompts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = []
    for example in examples:
        if not isinstance(example.prompt, str):
            raise InputError(f"{example.place} {_NO_TEMPLATE}")
        texts.append(example.prompt)
    prompts = _encode(tokenizer, texts, add_special_tokens=True)
    for example, prompt in zip(examples, prompts, strict=True):
        # Some tokenizers close every text with EOS; an answer has yet to follow here.
        while prompt and prompt[-1] == tokenizer.eos_token_id and not example.prompt_text.endswith(tokenizer.eos_token):
            prompt.pop()
        if not prompt:
            raise InputError(f"{example.place}: the prompt has no tokens. Give it at least one word.")
        if set(prompt) <= {tokenizer.eos_token_id, tokenizer.pad_token_id}:
            raise InputError(
                f"{example.place}: the prompt is nothing but the token that ends an answer, {tokenizer.eos_token!r}. "
                "Remove the row, or give the prompt a word."
            )
    return prompts


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
    return [list(tokens) for tokens in encoded["input_ids"]]


def _render(
    example: Example, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, form: Format, *, prompt: bool
) -> str:
    conversation: list[dict[str, Any]] = [message.rendered() for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                conversation, chat_template=form.chat_template, tokenize=False, add_generation_prompt=prompt
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message.role for message in messages)
        raise InputError(f"{example.place}: the chat template refuses the roles {roles}: {error}.") from error


def _template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    if chat_template == PLAIN or (chat_template is None and tokenizer.chat_template is None):
        return None
    if chat_template is not None and "{" not in chat_template:
        path = Path(chat_template).expanduser()
        if path.is_file():
            return path.read_text(encoding="utf-8")
        if not isinstance(tokenizer.chat_template, dict) or chat_template not in tokenizer.chat_template:
            raise InputError(
                f"`chat_template` {chat_template!r} is neither a Jinja template nor a file with one. Write `{PLAIN}` "
                "for plain text."
            )
    return str(tokenizer.get_chat_template(chat_template))


def _check_no_stop(example: Example, content: str, form: Format) -> None:
    for stop in form.stops:
        if stop in content:
            raise InputError(
                f"{example.place}: the completion holds the text {stop!r}, which is the token that ends an answer. "
                "Remove it from the text; it is added where the answer ends."
            )


def _boundary(example: Example, tokenizer: PreTrainedTokenizerBase, tokens: list[int], prompt: list[int]) -> str:
    """Which tokens differ where the prompt should end."""
    same = next((place for place, (a, b) in enumerate(zip(tokens, prompt, strict=False)) if a != b), len(tokens))
    alone = tokenizer.convert_ids_to_tokens(prompt[same : same + 4])
    together = tokenizer.convert_ids_to_tokens(tokens[same : same + 4])
    return (
        f"{example.place}: the prompt's tokens are not the first tokens of prompt and completion together. From token "
        f"{same} on the prompt alone reads {alone}, with the completion {together}: the tokenizer merges across the "
        "place where the completion starts. Let the template's generation prompt end in a newline or a special token, "
        "or move a space from its end into the completion."
    )


def _difference(short: str, long: str) -> str:
    """Where ``long`` stops to begin with ``short``, in words; empty when it does begin with it."""
    for place, (expected, found) in enumerate(zip(short, long, strict=False)):
        if expected != found:
            return f"at character {place}: {short[place : place + 30]!r} becomes {long[place : place + 30]!r}"
    return "" if len(short) <= len(long) else f"which drops {short[len(long) :][:30]!r}"
