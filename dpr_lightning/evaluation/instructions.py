"""Instructions that a program can check, as in IFEval: at least 300 words, no commas, three bullet points."""

from collections.abc import Mapping
from typing import Any

from dpr_lightning.data.ground_truth import needs
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifier_fields import mappings, texts


def _check_instructions(metadata: Mapping[str, Any]) -> None:
    """Each instruction must be one of lm-eval's, with all of its options."""
    try:
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    except ImportError as error:
        raise InputError(
            f"The verifier `instructions` needs lm-eval's checks ({error}): pip install 'dpr-lightning[eval]'."
        ) from error
    names, options = metadata["instruction_id_list"], metadata["kwargs"]
    if len(options) != len(names):
        raise InputError(
            f"`kwargs` must have one mapping for each of `instruction_id_list`; the row has {options!r} for {names!r}."
        )
    for name, option in zip(names, options, strict=True):
        if name not in INSTRUCTION_DICT:
            raise InputError(f"No check is called {name}. There are: {', '.join(sorted(INSTRUCTION_DICT))}.")
        # lm-eval would set what is missing at random; the prompt is passed to it.
        needed = set(INSTRUCTION_DICT[name](name).get_instruction_args_keys()) - {"prompt"}
        if needed != set(option) - {"prompt"}:
            raise InputError(
                f"The check {name} takes {sorted(needed)} in `kwargs`; the row has {sorted(set(option) - {'prompt'})}."
            )


@needs({"instruction_id_list": texts, "kwargs": mappings}, check=_check_instructions)
def instructions(prompt: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1 when the completion follows every instruction of the row, strictly; the checks are lm-eval's.

    Args:
        prompt: text of the prompt, which some checks use.
        completion: text of the answer.
        metadata: ``instruction_id_list``, such as ``["punctuation:no_comma"]``, and ``kwargs``, one mapping for each,
            as google/IFEval has them; both may be JSON.

    Raises:
        InputError: the package is not installed, or the row does not name its checks.
    Source: Zhou et al. 2023, arXiv:2311.07911.
    """
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    try:
        example = InputExample(0, metadata["instruction_id_list"], prompt, metadata["kwargs"])
        return float(test_instruction_following_strict(example, completion).follow_all_instructions)
    except LookupError as error:
        raise InputError(
            "A check of this row needs nltk's sentence splitter, which is not here: python -m nltk.downloader punkt_tab"
        ) from error
