"""The dense reward in TRL: a reward function of GRPOTrainer and RLOOTrainer."""

from collections.abc import Sequence
from typing import Any, Protocol

from dpr_lightning.data import TextReward
from dpr_lightning.data.text_reward import Prompt
from dpr_lightning.integrations.response_rewards import Reduction, check_reduction, response_reward


class RewardFunction(Protocol):
    """What TRL calls for the rewards of a batch."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One reward for each completion."""
        ...


def dense_reward_function(reward: TextReward, reduction: Reduction = "mean") -> RewardFunction:
    """A reward function for TRL's ``reward_funcs``.

    TRL takes one number for a completion, which it spreads over the tokens again; the credit of a single token is lost
    on the way. :class:`~dpr_lightning.integrations.trl_trainer.TokenRewardGRPOTrainer` keeps it.

    The models are scored on the token ids that TRL sampled. Each process has its copy of them, on its device.

    Args:
        reward: of a run, or of two folders; its tokenizer has to be that of the policy that TRL trains.
        reduction: ``mean`` over the tokens of a completion, or their ``sum``, which has a length bias: see
            :data:`~dpr_lightning.integrations.response_rewards.Reduction`.

    Raises:
        InputError: there is no such reduction.
    """
    check_reduction(reduction)

    def dense_reward(
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        if completion_ids is None:
            texts = reward.score_texts(prompts, completions)
            rewards = [[value for _, value in tokens] for tokens in texts]
        else:
            rewards = reward.score_completion_ids(prompts, completion_ids)
        return [response_reward(tokens, reduction) for tokens in rewards]

    return dense_reward
