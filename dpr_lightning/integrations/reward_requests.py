"""Requests for rewards as token ids: those of OpenRLHF's remote reward models, and this package's."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_lightning.data import TextReward
from dpr_lightning.data.text_reward import TokenRow
from dpr_lightning.errors import InputError
from dpr_lightning.integrations.response_rewards import Reduction, response_reward
from dpr_lightning.integrations.scoring_queue import Rewards


class RewardRequests:
    """Reads the content of requests, and writes that of responses.

    Args:
        reward: whose tokenizer reads the texts.
        reduction: of the tokens' rewards to one number.
    """

    def __init__(self, reward: TextReward, reduction: Reduction) -> None:
        self.reward, self.reduction = reward, reduction
        self._tokenizing = threading.Lock()  # a fast tokenizer serves one thread at a time

    def openrlhf_rows(self, content: Mapping[str, Any]) -> list[TokenRow]:
        """The tokens of a request of OpenRLHF: ``query``, whole texts, and ``prompts``, with which each of them begins.

        Both have the text of special tokens, as OpenRLHF decodes what it sampled. Padding before the prompt and after
        the end of the answer does not count.

        Raises:
            InputError: says what is wrong with the request.
        """
        queries, prompts = _texts(content, "query"), _texts(content, "prompts")
        _check_as_many("query", queries, "prompts", prompts)
        return [self._split(index, *texts) for index, texts in enumerate(zip(queries, prompts, strict=True), start=1)]

    def openrlhf_response(self, rows: Sequence[TokenRow], rewards: Rewards) -> dict[str, Any]:
        """``rewards`` and ``scores``, one a query, and what OpenRLHF logs beside them."""
        values = [response_reward(tokens, self.reduction) for tokens in rewards]
        logged = {"dense_reward_sum": [sum(tokens) for tokens in rewards], "scored_tokens": [len(r) for r in rewards]}
        return {"rewards": values, "scores": values, "extra_logs": logged}

    def text_rows(self, content: Mapping[str, Any]) -> list[TokenRow]:
        """The tokens of ``prompts`` and ``completions``, texts or messages, tokenised as demonstrations are.

        ``ended``, a list, says of which completions the end counts; all by default.

        Raises:
            InputError: says what is wrong with the request.
        """
        prompts, completions = _list(content, "prompts"), _list(content, "completions")
        _check_as_many("prompts", prompts, "completions", completions)
        ended = content.get("ended")
        if ended is not None and not (isinstance(ended, list) and all(isinstance(value, bool) for value in ended)):
            raise InputError("`ended` is a list of true and false, one for each completion.")
        with self._tokenizing:
            return self.reward.encode_texts(prompts, completions, ended=ended)

    def text_response(self, rows: Sequence[TokenRow], rewards: Rewards) -> dict[str, Any]:
        """``rewards``, one a completion, and its ``tokens`` with the reward of each."""
        with self._tokenizing:
            texts = [self.reward.token_texts(row) for row in rows]
        tokens = [
            [{"text": text, "reward": value} for text, value in zip(*parts, strict=True)]
            for parts in zip(texts, rewards, strict=True)
        ]
        return {"rewards": [response_reward(values, self.reduction) for values in rewards], "tokens": tokens}

    def _split(self, number: int, query: str, prompt: str) -> TokenRow:
        """The token ids of a query's prompt and of its answer up to its end."""
        start = query.find(prompt)
        if start < 0 or not prompt:
            raise InputError(
                f"`query` {number} does not contain `prompts` {number}. Both are texts with special tokens, as the "
                "policy's tokenizer decodes them."
            )
        cut = start + len(prompt)
        with self._tokenizing:
            tokenizer = self.reward.tokenizer
            before, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query[:cut], query[cut:])
            )
        while len(before) > 1 and before[0] == tokenizer.pad_token_id:
            del before[0]
        stops = self.reward.text_format.stop_ids
        end = next((index for index, token in enumerate(answer) if token in stops), len(answer))
        answer = answer[: end + 1]
        while answer and answer[-1] == tokenizer.pad_token_id and answer[-1] not in stops:
            del answer[-1]
        if not before:
            raise InputError(f"`prompts` {number} has no tokens. Give it at least one word.")
        return TokenRow([*before, *answer], [False] * len(before) + [True] * len(answer))


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    if key not in content:
        raise InputError(f"The request has no {key!r}; it has {', '.join(content) or 'nothing'}.")
    value = content[key]
    if not isinstance(value, list):
        raise InputError(f"{key!r} is a list, one entry a response; found {type(value).__name__}.")
    return value


def _texts(content: Mapping[str, Any], key: str) -> list[str]:
    values = [content[key]] if isinstance(content.get(key), str) else _list(content, key)
    wrong = next((index for index, value in enumerate(values, start=1) if not isinstance(value, str)), None)
    if wrong is not None:
        raise InputError(f"Entry {wrong} of {key!r} is no text.")
    return values


def _check_as_many(first: str, ours: Sequence[Any], second: str, theirs: Sequence[Any]) -> None:
    if len(ours) != len(theirs):
        raise InputError(f"{first!r} has {len(ours)} entries and {second!r} has {len(theirs)}; they are pairs.")
