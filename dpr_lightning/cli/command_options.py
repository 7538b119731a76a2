"""Options in messages by the names that a command has for them: ``--columns`` for ``data.columns``."""

import re
from collections.abc import Collection

OPTIONS = {
    "data.batch_size": "batch_size",
    "data.columns": "columns",
    "data.max_length": "max_length",
    "data.prompts": "prompts",
    "data.sampling.max_new_tokens": "max_new_tokens",
    "data.train": "train",
    "data.validation": "validation",
    "model.optimizer.lr": "learning_rate",
    "model.policy.source": "model",
    "trainer.max_epochs": "epochs",
}
"""Options of `dpr fit`, and those of commands that write its config."""


def with_command_options(message: str, names: Collection[str]) -> str:
    """A message in which an option of `dpr fit` has, at its first mention, the command's own name before it.

    Args:
        message: of a run, with options in backticks by their full names.
        names: of the command's options, without dashes.
    """
    for option, name in OPTIONS.items():
        if name in names:
            message = re.sub(rf"`{re.escape(option)}`", f"`--{name}` (`{option}`)", message, count=1)
    return message
