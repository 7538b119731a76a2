"""Which chat template and which stop tokens a policy is trained and queried with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.template_inputs import with_defaults
from dpr_lightning.errors import InputError

PLAIN = "none"


class Format(NamedTuple):
    """How text becomes tokens: the ``chat_template`` (None: plain text) and the tokens that end a turn."""

    chat_template: str | None
    stops: tuple[str, ...]
    stop_ids: frozenset[int]


def choose_format(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    end_of_turn: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Format:
    """Settle how text becomes tokens.

    Args:
        tokenizer: its own chat template is used when there is one.
        chat_template: use this one instead: a Jinja template, or the path of a file with one; ``none``: plain text.
        end_of_turn: a token other than EOS with which the template closes the assistant's turn and at which
            sampling stops too.
        chat_template_kwargs: values for variables of the template, such as ``{enable_thinking: false}``; they become
            part of the template.

    Raises:
        InputError: the tokenizer has no EOS token, ``end_of_turn`` is no token of it, or the template does not read a
            variable.
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
    template = _template(tokenizer, chat_template)
    if chat_template_kwargs:
        if template is None:
            raise InputError("`chat_template_kwargs` are of a chat template, and there is none.")
        template = with_defaults(template, chat_template_kwargs)
    return Format(template, tuple(stops), frozenset(stop_ids))


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
