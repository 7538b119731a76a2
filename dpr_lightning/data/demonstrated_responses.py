"""The demonstrations of a rollout's prompts, as one more response to each."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.chat_format import choose_format
from dpr_lightning.data.opponent_data import last_turn, widen
from dpr_lightning.data.prompts import PromptSet
from dpr_lightning.data.rows import Rows, open_rows
from dpr_lightning.data.tokenized import TokenizedDataset, tokenize_rows
from dpr_lightning.types import Rollouts


class DemonstratedResponses:
    """Joins the demonstration of each prompt to the responses that were sampled for it.

    Args:
        data: demonstrations of the rows that the prompts are from.
        prompts: of the rollouts.
    """

    def __init__(self, data: TokenizedDataset, prompts: PromptSet) -> None:
        self.data = data
        index = {number: position for position, number in enumerate(data.numbers.tolist())}
        self._index = np.array([index[number] for number in prompts.numbers], dtype=np.int64)

    @classmethod
    def read(
        cls,
        source: Rows,
        prompts: PromptSet,
        tokenizer: PreTrainedTokenizerBase,
        columns: Mapping[str, str] | None,
        **options: Any,
    ) -> "DemonstratedResponses":
        """Tokenise the demonstrations in the rows of some prompts.

        Args:
            source: of the prompts.
            prompts: of the rollouts.
            tokenizer: of the policy.
            columns: the source's names of our columns.
            options: of :func:`~dpr_lightning.data.chat_format.choose_format`.

        Raises:
            InputError: a row has no demonstration.
        """
        form = choose_format(tokenizer, **options)
        return cls(tokenize_rows(open_rows(source), tokenizer, form, columns=columns), prompts)

    def join(
        self, samples: Rollouts, group_size: int, pad: int, logprobs: Callable[[Tensor, Tensor], Tensor]
    ) -> Rollouts:
        """The rollout with groups of one response more, of which the demonstration is the last.

        Args:
            samples: ``group_size`` responses to each prompt, next to each other.
            group_size: K.
            pad: token id of the padding.
            logprobs: from tokens and mask [G, L] to the log-probabilities [G, T] of the policy that sampled.
        """
        prompt = samples.prompt[::group_size]
        batch = self.data.batch(self._index[prompt.cpu().numpy()], 1.0, pad)
        device = samples.tokens.device
        tokens, mask = batch.tokens.to(device), last_turn(batch.mask).to(device)
        logprob = logprobs(tokens, mask)
        length = max(tokens.shape[1], samples.tokens.shape[1])
        actions = max(logprob.shape[1], samples.logprob.shape[1])

        def joined(sampled: Tensor, demonstrated: Tensor, width: int | None = None, fill: float = 0) -> Tensor:
            if width is not None:
                sampled, demonstrated = widen(sampled, width, fill), widen(demonstrated, width, fill)
            groups = sampled.unflatten(0, (-1, group_size))
            return torch.cat([groups, demonstrated.unsqueeze(1).to(groups)], 1).flatten(0, 1)

        return Rollouts(
            joined(samples.tokens, tokens, length, pad),
            joined(samples.mask, mask, length, False),
            joined(samples.terminated, batch.terminated.to(device)),
            joined(samples.logprob, logprob, actions),
            joined(samples.prompt, prompt),
        )
