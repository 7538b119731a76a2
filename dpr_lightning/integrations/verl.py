"""The dense reward in verl: the function that ``custom_reward_function`` names.

verl passes a reward function no prompt, so that the data have to bring it along, in ``extra_info``:

    custom_reward_function.path=<this file>
    custom_reward_function.name=compute_score
    +custom_reward_function.reward_kwargs.run=runs/mine

With ``reward_model.reward_manager=batch`` name :func:`compute_scores`, which scores a batch at once.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from dpr_lightning.data import TextReward
from dpr_lightning.data.text_reward import Prompt
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.response_rewards import Reduction, check_reduction, response_reward
from dpr_lightning.rewards import RewardSpec

_SCORING = threading.Lock()
"""Locked while the models and the tokenizer are used: verl may call from several threads."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **options: Any,
) -> float:
    """The reward of one response; see :func:`compute_scores` for the options."""
    return compute_scores([data_source], [solution_str], [ground_truth], [extra_info], **options)[0]


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    run: str | None = None,
    sft: str | None = None,
    references: Iterable[str] = (),
    form: str | Mapping[str, float] | None = None,
    prompt_key: str = "prompt",
    reduction: Reduction = "mean",
    **unused: Any,
) -> list[float]:
    """The rewards of responses, in nats.

    Args:
        data_sources: not used.
        solution_strs: N texts of responses, without special tokens.
        ground_truths: not used.
        extra_infos: N mappings. Under ``prompt_key`` is the prompt, a text or messages {role, content}; ``truncated``
            says that the response was cut, so that it has no reward of its end.
        run: folder of a run, whose π_SFT and reference are used.
        sft: folder of π_SFT, where ``run`` is left out.
        references: folders of the references, likewise.
        form: of the reward; None: the recommended one.
        prompt_key: of ``extra_infos``.
        reduction: ``mean`` over the tokens of a response, or their ``sum``, which has a length bias.
        unused: further arguments of verl.

    Raises:
        InputError: neither ``run`` nor folders are named, or a row has no prompt.
    """
    check_reduction(reduction)
    with _SCORING:
        reward = _reward(run, sft, tuple(map(str, references)), _hashable(form))
    infos = [info or {} for info in extra_infos]
    missing = next((index for index, info in enumerate(infos) if prompt_key not in info), None)
    if missing is not None:
        keys = ", ".join(infos[missing]) or "nothing"
        raise InputError(
            f"`extra_info` of response {missing + 1} has no {prompt_key!r}; it has {keys}. "
            "verl passes no prompt to reward functions: write it into the rows' `extra_info`, or set "
            "`custom_reward_function.reward_kwargs.prompt_key` to the key that has it."
        )
    prompts: list[Prompt] = [_plain(info[prompt_key]) for info in infos]
    ended = [not info.get("truncated", False) for info in infos]
    with _SCORING:
        scored = reward.score_texts(prompts, solution_strs, ended=ended)
    return [response_reward([value for _, value in tokens], reduction) for tokens in scored]


@lru_cache(maxsize=1)
def _reward(
    run: str | None, sft: str | None, references: tuple[str, ...], form: str | tuple[tuple[str, float], ...] | None
) -> TextReward:
    """The models, loaded at the first call of a process."""
    named = form if form is None or isinstance(form, str) else dict(form)
    if run is not None:
        return TextReward.from_run(run, named)
    if sft is None or not references:
        raise InputError(
            "The dense reward of verl takes `run`, or `sft` and `references`, in "
            "`custom_reward_function.reward_kwargs`."
        )
    return TextReward.from_folders(sft, references, None if named is None else RewardSpec(named))


def _hashable(form: str | Mapping[str, float] | None) -> str | tuple[tuple[str, float], ...] | None:
    return form if form is None or isinstance(form, str) else tuple((name, float(form[name])) for name in form)


def _plain(prompt: Any) -> Prompt:
    """A prompt whose messages may be an array of numpy, as in Parquet."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
