"""The reward on held-out demonstrations, beside that on samples: does the policy game what was recovered?"""

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from dpr_lightning.data import carried_format, open_rows, tokenize_rows
from dpr_lightning.functional import masked_mean
from dpr_lightning.policies import sequence_logprobs, stop_token_ids
from dpr_lightning.types import DemonstrationBatch


class HeldOutReward(Callback):
    """Logs reward per token of held-out demonstrations (fixed) and the policy's likelihood of them (which moves).

    When the reward of samples climbs past that of demonstrations while the likelihood of demonstrations falls, the
    policy has left what the reward was recovered from.

    Args:
        every_n_steps: optimizer steps between measurements.
        limit: demonstrations used.
    """

    def __init__(self, every_n_steps: int = 20, limit: int = 64) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.limit = limit
        self._demonstrations: DemonstrationBatch | None = None
        self._reward = float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the demonstrations once: the frozen models do not change."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.held_out_path is None:
            return
        tokenizer: Any = pl_module.tokenizer
        form = carried_format(tokenizer, stop_token_ids(tokenizer, pl_module.policy))
        rows = tokenize_rows(open_rows(data.held_out_path), tokenizer, form, columns=data.columns, limit=self.limit)
        self._demonstrations = held = rows.batch(np.arange(len(rows)), 1.0, int(tokenizer.pad_token_id))
        data.reward.frozen.to(pl_module.device)
        scores = data.reward.score(held.tokens, held.mask, token_budget=data.token_budget)
        self._reward = float(masked_mean(scores.reward, scores.mask))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every so many optimizer steps."""
        held = self._demonstrations
        if held is None or trainer.fit_loop._should_accumulate() or trainer.global_step % self.every_n_steps:
            return
        policy: Any = pl_module.policy
        budget = trainer.datamodule.token_budget  # type: ignore[attr-defined]
        logprob = sequence_logprobs(policy, held.tokens, held.mask, token_budget=budget)
        nll = -logprob.sum() / held.mask.sum().clamp_min(1)
        pl_module.log_dict({"held_out/reward_per_token": self._reward, "held_out/nll": nll.to(pl_module.device)})
