"""The dense reward of texts: prompts and completions in, the reward of each token out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.check_result import CheckResult
from dpr_lightning.data.chat_format import Format, carried_format
from dpr_lightning.data.conversations import Example, to_prompt
from dpr_lightning.data.messages import Message, read_messages
from dpr_lightning.data.row_types import Row
from dpr_lightning.data.tokenization import tokenize_examples, tokenize_prompts
from dpr_lightning.engine import check_positions
from dpr_lightning.errors import InputError
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.rewards import SFT, DenseReward, RewardSpec
from dpr_lightning.rollouts import decode_tokens
from dpr_lightning.run_manifest import RunManifest

log = logging.getLogger(__name__)
Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or chat messages {role, content}; with a chat template a text is a message of the user."""
PAIR = "pair"
"""Name of a prompt with its completion in messages: ``pair:3`` is the third."""


class TokenRow(NamedTuple):
    """Token ids of a prompt with its completion, and True for each that the policy wrote."""

    tokens: list[int]
    mask: list[bool]


class TextReward(DenseReward):
    """A :class:`~dpr_lightning.rewards.DenseReward` that reads texts, as training on them would.

    ``from dpr_lightning import DenseReward`` imports this class.

    Args:
        frozen: the models, loaded from folders.
        spec: form of the reward; None: :meth:`RewardSpec.recommended`.
    """

    @classmethod
    def from_run(
        cls,
        run: str,
        form: str | dict[str, float] | RewardSpec | None = None,
        reference: float | None = None,
        *,
        dtype: Dtype = "float32",
    ) -> Self:
        """The reward of a run: its π_SFT against one of the policies that it saved on the way.

        Args:
            run: folder of the run, with run.json.
            form: of the reward, as in :class:`~dpr_lightning.rewards.RewardSpec`; None: that which `dpr check` found,
                else the recommended one.
            reference: share of the SFT run at which the reference was saved, the nearest is taken; None: that which was
                checked, else a quarter, as in the recipes.
            dtype: of the models' parameters.

        Raises:
            InputError: the folder has no run, or its SFT has not ended or saved no references.
        """
        manifest = RunManifest.load(run)
        check = CheckResult.load(manifest.folder)
        if reference is not None:
            shares = manifest.references
            folder = shares[min(shares, key=lambda share: abs(float(share) - reference))]
        else:
            folder = manifest.reference if check is None else check.reference_in(manifest)
        spec = form if form is None or isinstance(form, RewardSpec) else RewardSpec(form)
        if spec is None and check is not None and check.reward is not None:
            spec = RewardSpec(**check.reward)
            log.info("The reward of %s is %s against %s, as `dpr check` found.", run, spec.form, folder)
        return cls.from_folders(manifest.sft, [folder], spec, dtype=dtype)

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
        rows = self.encode_texts(prompts, completions, ended=ended)
        rewards = self.score_rows(rows, token_budget=token_budget)
        return [
            list(zip(self.token_texts(row), values, strict=True)) for row, values in zip(rows, rewards, strict=True)
        ]

    def score_completion_ids(
        self, prompts: Sequence[Prompt], completion_ids: Sequence[Sequence[int]], *, token_budget: int | None = None
    ) -> list[list[float]]:
        """The reward of each token of completions that a policy sampled, in nats.

        No text is encoded again, and no end is added to a completion that was cut.

        Args:
            prompts: N texts, or lists of messages; they are encoded as for sampling.
            completion_ids: N lists of token ids; a token that ended the completion is the last of them.
            token_budget: tokens of a forward pass, padding included.

        Returns:
            N lists of rewards, as long as those of ``completion_ids``.

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
    ) -> list[list[float]]:
        """As :meth:`score_completion_ids`, with prompts that are token ids too.

        Raises:
            InputError: the lists differ in length, or a prompt has no token.
        """
        _check_lengths(len(prompt_ids), len(completion_ids))
        empty = next((index for index, prompt in enumerate(prompt_ids) if len(prompt) == 0), None)
        if empty is not None:
            raise InputError(f"{PAIR}:{empty + 1}: the prompt has no tokens. Give it at least one word.")
        rows = [
            TokenRow([*prompt, *completion], [False] * len(prompt) + [True] * len(completion))
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]
        return self.score_rows(rows, token_budget=token_budget)

    def encode_texts(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], *, ended: Sequence[bool] | None = None
    ) -> list[TokenRow]:
        """The tokens that :meth:`score_texts` scores."""
        _check_lengths(len(prompts), len(completions))
        if ended is not None and len(ended) != len(completions):
            raise InputError(f"There are {len(completions)} completions and {len(ended)} entries in `ended`.")
        examples = [
            replace(example, completion=_completion(example, completion))
            for example, completion in zip(_prompts(prompts), completions, strict=True)
        ]
        rows = []
        for index, example in enumerate(tokenize_examples(examples, self.tokenizer, self.text_format)):
            mask = list(example.mask)
            if ended is not None and not ended[index] and example.terminated:
                mask[-1] = False
            rows.append(TokenRow(example.tokens, mask))
        return rows

    def token_texts(self, row: TokenRow) -> list[str]:
        """The text of each token of a row that the policy wrote."""
        pairs = zip(row.tokens, row.mask, strict=True)
        return [decode_tokens(self.tokenizer, [token]) for token, acted in pairs if acted]

    def score_rows(self, rows: Sequence[TokenRow], *, token_budget: int | None = None) -> list[list[float]]:
        """The rewards of the tokens of each row that the policy wrote, in nats.

        Raises:
            InputError: a row is longer than the models' positions, or the models cannot be told apart.
        """
        if not any(any(row.mask) for row in rows):
            return [[] for _ in rows]
        self.frozen.to(best_device())
        longest = max(range(len(rows)), key=lambda index: len(rows[index].tokens))
        length = len(rows[longest].tokens)
        what = f"{PAIR}:{longest + 1} has {length:,} tokens, prompt and completion"
        for name in self.frozen.names:
            with self.frozen.use(name) as model:
                check_positions(model, length, what, lambda limit: f"Shorten it to at most {limit:,}.")
        scores = self.score(*_padded(rows, int(self.tokenizer.pad_token_id)), token_budget=token_budget)
        return [rewards[scored].tolist() for rewards, scored in zip(scores.reward, scores.mask, strict=True)]


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


def _padded(rows: Sequence[TokenRow], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and masks [N, L], padded on the right."""
    width = max(len(row.tokens) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[index, : len(row.mask)] = torch.tensor(row.mask)
    return ids, mask
