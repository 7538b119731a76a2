"""Which chat template and which stop tokens a policy is trained and queried with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpr_lightning.data.template_inputs import with_defaults
from dpr_lightning.engine import inside_of_adapters
from dpr_lightning.errors import InputError
from dpr_lightning.policies import special_tokens
from dpr_lightning.policies.special_tokens import carry_padding, set_padding

PLAIN = "none"
SpecialText = Literal["text", "tokens", "error"]
SETTING = "special_tokens_in_text"
"""Name of the option, and of the key of tokenizer_config.json that carries it to later stages."""


class Format(NamedTuple):
    """How text becomes tokens.

    ``chat_template``: None for plain text; ``stops`` and ``stop_ids``: the tokens that end a turn, EOS first;
    ``end_of_turn``: the one that the option of this name sets; ``special_text``: how special tokens are encoded that
    the texts of rows spell.
    """

    chat_template: str | None
    stops: tuple[str, ...]
    stop_ids: frozenset[int]
    end_of_turn: str | None = None
    special_text: SpecialText = "text"


def choose_format(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    end_of_turn: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    policy: nn.Module | str | None = None,
    special_tokens_in_text: SpecialText | None = None,
) -> Format:
    """The format of a policy, from its tokenizer, its generation configuration and the user's options.

    Args:
        tokenizer: its own chat template is used when there is one.
        chat_template: use this one instead: a Jinja template, or the path of a file with one; ``none``: plain text.
        end_of_turn: a token other than EOS with which the template closes the assistant's turn and at which
            sampling stops too.
        chat_template_kwargs: values for variables of the template, such as ``{enable_thinking: false}``; they become
            part of the template.
        policy: the model, or its folder or hub id, whose generation configuration may name more stops.
        special_tokens_in_text: how special tokens are encoded that texts of rows spell; None: as saved with the
            tokenizer, else ``text``.

    Raises:
        InputError: the tokenizer has no EOS token, ``end_of_turn`` is no token of it, or the template does not read a
            variable.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so a policy could never learn to stop. Set "
            "`eos_token` in its tokenizer_config.json."
        )
    stop_ids = special_tokens(tokenizer, policy, end_of_turn=end_of_turn).stops
    names = tokenizer.convert_ids_to_tokens([token for token in stop_ids if token < len(tokenizer)])
    template = _template(tokenizer, chat_template)
    if chat_template_kwargs:
        if template is None:
            raise InputError("`chat_template_kwargs` are of a chat template, and there is none.")
        template = with_defaults(template, chat_template_kwargs)
    check_setting(special_tokens_in_text)
    special_text = special_tokens_in_text or tokenizer.init_kwargs.get(SETTING, "text")
    return Format(template, tuple(map(str, names)), frozenset(stop_ids), end_of_turn, special_text)


def check_setting(setting: str | None) -> None:
    """Refuse an unknown value of ``special_tokens_in_text``.

    Raises:
        InputError: it is none of the choices.
    """
    if setting is not None and setting not in get_args(SpecialText):
        raise InputError(f"`{SETTING}` is one of {', '.join(get_args(SpecialText))}; found {setting!r}.")


def carried_format(tokenizer: PreTrainedTokenizerBase, policy: nn.Module | str) -> Format:
    """The format that :func:`carry_format` wrote into a policy: its tokenizer's template, and the tokens it stops at.

    Args:
        tokenizer: saved with the policy.
        policy: the model, or its folder.
    """
    return choose_format(tokenizer, policy=policy)


def carry_format(
    form: Format, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, pad_token: str | None = None
) -> None:
    """Write ``form`` into a policy and its tokenizer, to be saved with them: template, pad token, stop tokens.

    Args:
        form: of the policy's training data.
        policy: its configurations take the stops and the pad token.
        tokenizer: of the policy.
        pad_token: the user's choice.

    Raises:
        InputError: every token that could pad is one that the format writes.
    """
    tokenizer.chat_template = form.chat_template
    tokenizer.init_kwargs.pop(SETTING, None)
    if form.special_text != "text":
        tokenizer.init_kwargs[SETTING] = form.special_text
    single = inside_of_adapters(policy)
    if not isinstance(single, PreTrainedModel) or not single.can_generate():  # a verifier head does not generate
        return
    special = special_tokens(tokenizer, policy, end_of_turn=form.end_of_turn, pad_token=pad_token, required=True)
    set_padding(tokenizer, special, pad_token)
    stops = sorted({*special.stops, *form.stop_ids})
    single.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    carry_padding(policy, tokenizer, special)


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
