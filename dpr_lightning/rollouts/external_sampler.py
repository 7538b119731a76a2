"""Programs beside this one that can write a policy's answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.rollouts.answers import Answers, joined
from dpr_lightning.rollouts.random import sample_keys
from dpr_lightning.rollouts.sampler import SamplingOptions
from dpr_lightning.types import Rollouts


@dataclass(frozen=True)
class Request:
    """What another program is asked to write.

    ``prompts``: token ids; ``seeds``: 64-bit, of each prompt, which its place does not change; ``num_samples``: K
    answers a prompt; ``options``: how tokens are drawn; ``stop_tokens``: ids that end an answer, and belong to it;
    ``longest_prompt``: tokens of the longest prompt that will ever be asked.
    """

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    num_samples: int
    options: SamplingOptions
    stop_tokens: Sequence[int]
    longest_prompt: int


class ExternalSampler(ABC):
    """Writes answers with other kernels, so that its log-probabilities are not quite those of the policy.

    What learns from its answers weighs them by :func:`dpr_lightning.functional.truncated_importance`.
    """

    def __call__(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        *,
        tokenizer: PreTrainedTokenizerBase,
        stop_tokens: Sequence[int],
        num_samples: int = 1,
        seed: int = 0,
        prompt_ids: Sequence[int] | None = None,
        longest_prompt: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """As :func:`dpr_lightning.rollouts.sample`, with the weights that ``policy`` has now.

        ``logprob`` is what the program drew with; ``longest_prompt``: of all that will ever be asked; None: of these.
        """
        identities = list(range(len(prompts))) if prompt_ids is None else list(prompt_ids)
        seeds = sample_keys(seed, torch.tensor(identities), torch.zeros(len(prompts), dtype=torch.int64)).tolist()
        longest = max(map(len, prompts)) if longest_prompt is None else longest_prompt
        answers = self.write(policy, tokenizer, Request(prompts, seeds, num_samples, options, stop_tokens, longest))
        if progress is not None:
            progress(len(prompts) * num_samples)
        return joined(prompts, answers, identities, int(tokenizer.pad_token_id))

    @abstractmethod
    def write(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, request: Request) -> list[Answers]:
        """The answers to each prompt, with the weights that ``policy`` has now."""

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Let go of whatever the program holds; it may be asked again."""
