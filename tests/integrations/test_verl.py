"""The function that verl calls gives what the dense reward gives."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr_lightning import DenseReward
from dpr_lightning.errors import InputError
from dpr_lightning.integrations import verl

PROMPT, ANSWER = "1 + 1 =", "Answer: 2"


@pytest.fixture
def options(folders: tuple[str, str]) -> dict[str, Any]:
    return {"sft": folders[0], "references": [folders[1]], "form": "log_ratio"}


def mean(tokens: list[tuple[str, float]]) -> float:
    return sum(value for _, value in tokens) / len(tokens)


def test_a_response_has_the_mean_of_its_tokens(reward: DenseReward, options: dict[str, Any]) -> None:
    expected = reward.score_texts([PROMPT], [ANSWER])[0]
    arguments = ("math", ANSWER, "2", {"prompt": PROMPT, "index": 3})
    assert verl.compute_score(*arguments, **options) == pytest.approx(mean(expected), abs=1e-5)
    total = sum(value for _, value in expected)
    assert verl.compute_score(*arguments, **options, reduction="sum") == pytest.approx(total, abs=1e-5)


def test_a_cut_response_has_no_reward_of_its_end(reward: DenseReward, options: dict[str, Any]) -> None:
    expected = reward.score_texts([PROMPT], [ANSWER], ended=[False])[0]
    result = verl.compute_score("math", ANSWER, "2", {"prompt": PROMPT, "truncated": True}, **options)
    assert result == pytest.approx(mean(expected), abs=1e-5)


def test_a_batch_is_scored_at_once_and_loads_the_models_once(options: dict[str, Any], reward: DenseReward) -> None:
    verl._reward.cache_clear()
    infos = [{"question": PROMPT}, {"question": "3 ="}]
    result = verl.compute_scores(["m"] * 2, [ANSWER, "4"], [None] * 2, infos, **options, prompt_key="question")
    expected = [mean(tokens) for tokens in reward.score_texts([PROMPT, "3 ="], [ANSWER, "4"])]
    assert result == pytest.approx(expected, abs=1e-5)
    verl.compute_score("m", ANSWER, None, {"prompt": PROMPT}, **options)
    assert verl._reward.cache_info().misses == 1


def test_verl_loads_the_file_by_its_path(options: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location("custom_module", Path(verl.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = ("math", ANSWER, "2", {"prompt": PROMPT})
    assert module.compute_score(*arguments, **options) == verl.compute_score(*arguments, **options)


def test_what_is_missing_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`extra_info` of response 1 has no 'prompt'; it has index"):
        verl.compute_score("math", ANSWER, "2", {"index": 1}, **options)
    with pytest.raises(InputError, match="takes `run`, or `sft` and `references`"):
        verl.compute_score("math", ANSWER, "2", {"prompt": PROMPT}, sft=options["sft"])
    with pytest.raises(InputError, match="`reduction` is one of mean, sum"):
        verl.compute_score("math", ANSWER, "2", {"prompt": PROMPT}, **options, reduction="max")
    messages = np.array([{"role": "user", "content": PROMPT}], dtype=object)
    with pytest.raises(InputError, match=r"pair:1 .*no chat template"):
        verl.compute_score("math", ANSWER, "2", {"prompt": messages}, **options)
