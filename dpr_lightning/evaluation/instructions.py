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
    names, given = metadata.get("instruction_id_list"), metadata.get("kwargs")
    options = json.loads(given) if isinstance(given, str) else given
    if not names or not isinstance(options, list) or len(options) != len(names):
        raise InputError(
            "The verifier `instructions` reads `instruction_id_list` and one entry of `kwargs` for each of them; the "
            f"row has {names!r} and {given!r}."
        )
    unknown = [name for name in names if name not in INSTRUCTION_DICT]
    if unknown:
        raise InputError(f"No check is called {', '.join(unknown)}. There are: {', '.join(sorted(INSTRUCTION_DICT))}.")
    asked = InputExample(0, list(names), prompt, [dict(option or {}) for option in options])
    return float(test_instruction_following_strict(asked, completion).follow_all_instructions)
