"""The dense reward of texts: prompts and completions in, the reward of each token out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import Format, carried_format
from dpr_lightning.data.conversations import Example, to_prompt
from dpr_lightning.data.messages import Message, read_messages
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.tokenization import tokenize_examples, tokenize_prompts
from dpr_lightning.engine import check_positions
from dpr_lightning.errors import InputError
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.rewards import SFT, DenseReward
from dpr_lightning.rollouts import decode_tokens

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or chat messages {role, content}; with a chat template a text is a message of the user."""
PAIR = "pair"
"""Name of a prompt with its completion in messages: ``pair:3`` is the third."""


class TextReward(DenseReward):
    """A :class:`~dpr_lightning.rewards.DenseReward` that reads texts, as training on them would.

    ``from dpr_lightning import DenseReward`` imports this class.

    Args:
        frozen: the models, loaded from folders.
        spec: form of the reward; None: :meth:`RewardSpec.recommended`.
    """

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of π_SFT, which is that of the references too."""
        return load_tokenizer(self.frozen.folders[SFT])

    @cached_property
    def text_format(self) -> Format:
        """The chat template and the stop tokens that π_SFT was trained with."""
        return carried_format(self.tokenizer, self.frozen.folders[SFT])

    def score_texts(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        *,
        ended: Sequence[bool] | None = None,
        token_budget: int | None = None,
    ) -> list[list[tuple[str, float]]]:
        """The reward of each token of each completion, in nats.

        The texts are tokenised as demonstrations are: by the chat template of π_SFT where it has one, and with the
        token that ends the answer, which has a reward too.

        Args:
            prompts: N texts, or lists of messages {role, content}.
            completions: N texts, or lists of messages of the assistant.
            ended: whether each completion ended; one that was cut has no reward of the end. None: all ended.
            token_budget: tokens of a forward pass, padding included; limits memory and changes no score.

        Returns:
            N lists of (text of the token, its reward), one entry for each token that the policy wrote.

        Raises:
            InputError: the lists differ in length, or a pair cannot be tokenised (``pair:3`` is the third).
        """
        if ended is not None and len(ended) != len(completions):
            raise InputError(f"There are {len(completions)} completions and {len(ended)} entries in `ended`.")
        examples = self._examples(prompts, completions)
        tokenized = tokenize_examples(examples, self.tokenizer, self.text_format)
        rows = []
        for index, example in enumerate(tokenized):
            mask = list(example.mask)
            if ended is not None and not ended[index] and example.terminated:
                mask[-1] = False
            rows.append((example.tokens, mask))
        return self._token_rewards(rows, token_budget)

    def score_completion_ids(
        self, prompts: Sequence[Prompt], completion_ids: Sequence[Sequence[int]], *, token_budget: int | None = None
    ) -> list[list[tuple[str, float]]]:
        """As :meth:`score_texts`, for completions that a policy sampled: no text is encoded again, and none is ended.

        Args:
            prompts: N texts, or lists of messages; they are encoded as for sampling.
            completion_ids: N lists of token ids; a token that ended the completion is the last of them.
            token_budget: tokens of a forward pass.

        Returns:
            N lists of (text of the token, its reward), as long as ``completion_ids``.

        Raises:
            InputError: the lists differ in length, or a prompt cannot be tokenised.
        """
        _check_lengths(len(prompts), len(completion_ids))
        encoded = tokenize_prompts(_prompts(prompts), self.tokenizer, self.text_format)
        return self.score_ids(encoded, completion_ids, token_budget=token_budget)

    def score_ids(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        token_budget: int | None = None,
    ) -> list[list[tuple[str, float]]]:
        """As :meth:`score_texts`, of token ids alone.

        Raises:
            InputError: the lists differ in length, or a prompt has no token.
        """
        _check_lengths(len(prompt_ids), len(completion_ids))
        empty = next((index for index, prompt in enumerate(prompt_ids) if len(prompt) == 0), None)
        if empty is not None:
            raise InputError(f"{PAIR}:{empty + 1}: the prompt has no tokens. Give it at least one word.")
        rows = [
            ([*prompt, *completion], [False] * len(prompt) + [True] * len(completion))
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]
        return self._token_rewards(rows, token_budget)

    def _examples(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[Example]:
        _check_lengths(len(prompts), len(completions))
        return [
            replace(example, completion=_completion(example, completion))
            for example, completion in zip(_prompts(prompts), completions, strict=True)
        ]

    def _token_rewards(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], token_budget: int | None
    ) -> list[list[tuple[str, float]]]:
        """The rewards of the tokens of each row that its mask marks."""
        self.frozen.to(best_device())
        if not any(any(mask) for _, mask in rows):
            return [[] for _ in rows]
        longest = max(range(len(rows)), key=lambda index: len(rows[index][0]))
        for name in self.frozen.names:
            with self.frozen.use(name) as model:
                tokens = len(rows[longest][0])
                what = f"{PAIR}:{longest + 1} has {tokens:,} tokens, prompt and completion"
                check_positions(model, tokens, what, lambda limit: f"Shorten it to at most {limit:,}.")
        ids, mask = _padded(rows, int(self.tokenizer.pad_token_id))
        scores = self.score(ids, mask, token_budget=token_budget)
        return [
            [
                (decode_tokens(self.tokenizer, [token]), reward)
                for token, reward in zip(row[acted].tolist(), rewards[scored].tolist(), strict=True)
            ]
            for row, acted, rewards, scored in zip(ids, mask, scores.reward, scores.mask, strict=True)
        ]


def _check_lengths(prompts: int, completions: int) -> None:
    if prompts != completions:
        raise InputError(f"There are {prompts} prompts and {completions} completions; each prompt takes one.")


def _prompts(prompts: Sequence[Prompt]) -> list[Example]:
    """The prompts as examples without a completion."""
    return [to_prompt(Row(PAIR, index, {"prompt": prompt})) for index, prompt in enumerate(prompts, start=1)]


def _completion(example: Example, completion: Prompt) -> str | tuple[Message, ...]:
    """The completion of a pair, in the form of :class:`Example`."""
    if isinstance(completion, str):
        return completion
    row = Row(example.file, example.number, {"completion": completion})
    messages = read_messages(row, completion, "completion", learn=True, text=True)
    if not messages or messages[-1].role != "assistant" or not messages[-1].train:
        raise InputError(f"{example.location}: the completion does not end with a message of the assistant.")
    return messages


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and masks [N, L], padded on the right."""
    width = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (tokens, acted) in enumerate(rows):
        ids[index, : len(tokens)] = torch.tensor(tokens)
        mask[index, : len(acted)] = torch.tensor(acted)
    return ids, mask
