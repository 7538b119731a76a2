"""The date that chat templates write: the same for a whole run, and saved in its checkpoints."""

import functools
import json
import logging
import re
from datetime import datetime

import jinja2
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.template_inputs import reads_variable

log = logging.getLogger(__name__)
CLOCK, DATE = "strftime_now", "date_string"
"""Function that templates call to format the time, and the variable that some of them read instead."""
OTHER_TIME = datetime(1999, 12, 31, 23, 59, 58)
_CALL = re.compile(rf"\b{CLOCK}\s*\(\s*(['\"])((?:(?!\1)[^\\])*)\1\s*\)")


class _Clock:
    """The time of this run; None until :func:`template_time` is first called."""

    def __init__(self) -> None:
        self.time: datetime | None = None


_clock = _Clock()


def template_time() -> datetime:
    """The time that chat templates write: that of the first call in this run, or in the run that it resumes."""
    if _clock.time is None:
        _clock.time = datetime.now()
    return _clock.time


def set_template_time(time: datetime | None) -> None:
    """Set the time, to that of the run that is resumed; None: the next call of :func:`template_time` sets it."""
    _clock.time = time


def dated_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template with its clock fixed at the run's time. Warns once if the time changes its text.

    Args:
        tokenizer: of the policy.
        template: in Jinja.
    """
    if not reads_variable(template, CLOCK):
        return template
    time = template_time()
    _warn(tokenizer, template, time)
    return _at(template, time)


@functools.lru_cache(maxsize=16)
def dated_text(tokenizer: PreTrainedTokenizerBase, template: str, time: datetime) -> str | None:
    """A short conversation rendered at ``time``; None where the time makes no difference."""
    if not reads_variable(template, CLOCK):
        return None
    try:
        text, other = (_rendered(tokenizer, _at(template, each)) for each in (time, OTHER_TIME))
    except (jinja2.TemplateError, TypeError, ValueError):
        return None  # the error is reported when a row is rendered
    return text if text != other else None


@functools.lru_cache(maxsize=16)
def _at(template: str, time: datetime) -> str:
    """The template with a macro for its clock: transformers passes no functions to a template.

    If the template computes the format itself, the machine's clock is used.
    """
    formats = [match[2] for match in _CALL.finditer(template)]
    if len(formats) != len(re.findall(rf"\b{CLOCK}\s*\(", template)):
        return template
    texts = json.dumps({form: time.strftime(form) for form in formats}, ensure_ascii=False)
    # Jinja drops a newline after a block, and the template's first character may be one.
    return f"{{% macro {CLOCK}(form) %}}{{{{ {texts}[form] }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


@functools.lru_cache(maxsize=16)
def _warn(tokenizer: PreTrainedTokenizerBase, template: str, time: datetime) -> None:
    if dated_text(tokenizer, template, time) is None:
        return
    remedy = (
        f"set `data.chat_template_kwargs: {{{DATE}: {time:%d %b %Y}}}`"
        if reads_variable(template, DATE)
        else "give a `data.chat_template` file with a date instead of the clock"
    )
    log.warning(
        "The chat template writes the date, and this run uses %s whenever it goes on. Stages on other days use theirs: "
        "%s to have one date in all, which is saved with the policy.",
        f"{time:%d %b %Y}",
        remedy,
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    conversation = [{"role": "user", "content": "When?"}]
    return str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False))
