"""Programs beside this one that can write a policy's answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.rollouts.sampler import SamplingOptions
from dpr_lightning.types import Rollouts


class OtherSampler(ABC):
    """Writes answers with kernels of its own, so that its log-probabilities are not quite those of the policy.

    What learns from its answers weighs them by :func:`dpr_lightning.functional.truncated_importance`.
    """

    @abstractmethod
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

        ``longest_prompt``: tokens of the longest prompt that will ever be asked.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Let go of whatever the program holds; it may be asked again."""
