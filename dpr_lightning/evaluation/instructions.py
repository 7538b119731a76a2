"""Instructions that a program can check, as in IFEval: at least 300 words, no commas, three bullet points."""

import json
from collections.abc import Mapping
from typing import Any

from dpr_lightning.errors import InputError


def instructions(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1 when the completion follows every instruction of the row, strictly; the checks are lm-eval's.

    Args:
        prompt: what was asked; some checks look at it.
        completion: what the policy wrote.
        metadata: ``instruction_id_list``, such as ``["punctuation:no_comma"]``, and ``kwargs``, one mapping for each,
            as google/IFEval has them; ``kwargs`` may be JSON.

    Raises:
        InputError: the package is not installed, or the row does not say what is to be checked.
    Source: Zhou et al. 2023, arXiv:2311.07911.
    """
    try:
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
        from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict
    except ImportError as error:
        raise InputError(
            f"The verifier `instructions` needs lm-eval's checks ({error}): pip install 'dpr-lightning[eval]'."
        ) from error
    names, options = metadata.get("instruction_id_list"), _options(metadata.get("kwargs"))
    if not names or len(options) != len(names):
        raise InputError(
            "The verifier `instructions` reads `instruction_id_list` and one mapping in `kwargs` for each of them; the "
            f"row has {names!r} and {metadata.get('kwargs')!r}."
        )
    for name, option in zip(names, options, strict=True):
        if name not in INSTRUCTION_DICT:
            raise InputError(f"No check is called {name}. There are: {', '.join(sorted(INSTRUCTION_DICT))}.")
        # What is left out lm-eval would draw at random. The prompt it is given.
        asked = set(INSTRUCTION_DICT[name](name).get_instruction_args_keys()) - {"prompt"}
        given = {key for key, value in option.items() if value is not None}
        if asked != given - {"prompt"}:
            raise InputError(f"The check {name} takes {sorted(asked)} in `kwargs`; the row has {sorted(given)}.")
    try:
        example = InputExample(0, list(names), prompt, options)
        return float(test_instruction_following_strict(example, completion).follow_all_instructions)
    except LookupError as error:
        raise InputError(
            "A check of this row needs nltk's sentence splitter, which is not here: python -m nltk.downloader punkt_tab"
        ) from error


def _options(given: Any) -> list[dict[str, Any]]:
    """``kwargs`` of a row as mappings; nothing where they are none."""
    try:
        held = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return []
    whole = isinstance(held, list) and all(option is None or isinstance(option, Mapping) for option in held)
    return [dict(option or {}) for option in held] if whole else []
