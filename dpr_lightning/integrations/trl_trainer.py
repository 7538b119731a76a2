"""TRL's GRPOTrainer with the dense reward as the credit of each token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpr_lightning.data import TextReward
from dpr_lightning.data.text_reward import Prompt
from dpr_lightning.distributed import as_wide_on_all_ranks, sum_over_ranks
from dpr_lightning.errors import InputError
from dpr_lightning.functional import position_baseline, returns_to_go
from dpr_lightning.integrations.response_rewards import response_reward

try:
    from trl.trainer.grpo_trainer import GRPOTrainer
except ImportError as missing:
    raise InputError("TokenRewardGRPOTrainer needs the package trl: pip install trl.") from missing


class TokenRewardGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer in which the advantage of a token is its own reward, less the mean of all tokens at its position.

    TRL gives every token of a completion the advantage of the whole. Its loss takes one advantage a token too, for
    subclasses, which is what this one uses: ``scale_rewards``, ``reward_weights`` and the group of a prompt have no
    effect. In the logs, ``reward`` is the mean over the tokens of a completion.

    Source: the credit of ``DensePathReinforce`` with ``estimator: reinforce``; the loss is TRL's.

    Args:
        model: as GRPOTrainer's.
        reward: scores the tokens; its tokenizer has to be that of ``model``.
        discount: γ, the weight of the rewards of later tokens.
        options: further arguments of GRPOTrainer, but ``reward_funcs``; ``beta`` of its ``args`` is the weight of the
            KL term.

    Raises:
        InputError: an option was set that takes one advantage a completion.
    """

    def __init__(self, model: Any, reward: TextReward, *, discount: float = 0.0, **options: Any) -> None:
        self._token_rewards: list[list[float]] = []
        self._discount = discount

        def dense_reward(
            prompts: Sequence[Prompt], completion_ids: Sequence[Sequence[int]], **columns: Any
        ) -> list[float | None]:
            self._token_rewards = reward.score_completion_ids(prompts, completion_ids)
            return [response_reward(rewards, "mean") for rewards in self._token_rewards]

        super().__init__(model, dense_reward, **options)
        if self.args.use_liger_kernel:
            raise InputError("TokenRewardGRPOTrainer computes TRL's loss without Liger: set `use_liger_kernel=False`.")

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor | Any]:
        """Called by TRL for the completions of a step, with their advantages [B]; here [B, T]."""
        batch: dict[str, Tensor | Any] = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"].bool()
        reward = torch.zeros(mask.shape, device=mask.device)
        for row, rewards in zip(reward, self._token_rewards, strict=True):
            row[: len(rewards)] = torch.tensor(rewards, device=mask.device)
        returns = returns_to_go(reward, mask, self._discount)
        wide, acted = as_wide_on_all_ranks(returns), as_wide_on_all_ranks(mask)
        baseline = position_baseline(wide, acted, sum_over_ranks)[:, : mask.shape[1]]
        batch["advantages"] = (returns - baseline).masked_fill(~mask, 0.0)
        return batch
