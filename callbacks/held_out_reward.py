"""The reward on held-out demonstrations, beside that on samples: does the policy game what was recovered?"""

import logging
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer

from dpr_lightning.callbacks.periodic_evaluation import PeriodicEvaluation
from dpr_lightning.data import RewardDataModule, Rows, carried_format, open_rows, tokenize_rows
from dpr_lightning.engine import sequence_logprobs
from dpr_lightning.errors import InputError
from dpr_lightning.functional import masked_mean
from dpr_lightning.trainer_attributes import datamodule_of
from dpr_lightning.types import DemonstrationBatch

log = logging.getLogger(__name__)


class HeldOutReward(PeriodicEvaluation):
    """Logs reward per token of held-out demonstrations (fixed) and the policy's likelihood of them (which moves).

    When the reward of samples climbs past that of demonstrations while the likelihood of demonstrations falls, the
    policy has left what the reward was recovered from.

    The demonstrations are ``data.held_out``; without, nothing is measured, which is said once.

    Args:
        every_n_steps: optimizer steps between measurements.
        limit: demonstrations used.
    """

    def __init__(self, every_n_steps: int = 20, limit: int = 64) -> None:
        super().__init__(every_n_steps)
        self.limit = limit
        self._demonstrations: DemonstrationBatch | None = None
        self._reward = float("nan")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data that have no reward.

        Raises:
            InputError: they are not those of a rollout algorithm.
        """
        data = datamodule_of(trainer)
        if not isinstance(data, RewardDataModule):
            raise InputError(
                f"`trainer.callbacks`: HeldOutReward measures the reward of rollouts, and {type(data).__name__} has "
                "none. Take it out of the list."
            )
        if data.held_out_path is None and trainer.is_global_zero:
            log.warning("HeldOutReward measures nothing: set `data.held_out` to demonstrations that were held out.")

    def metric_names(self) -> list[str]:
        """The reward and the policy's negative log-likelihood."""
        return ["held_out/reward_per_token", "held_out/nll"]

    def measure(self, trainer: Trainer, module: Any) -> dict[str, float]:
        """The reward, scored once, for the frozen models do not change; and the policy's mean −log π, nats a token."""
        data = datamodule_of(trainer)
        assert isinstance(data, RewardDataModule)
        if data.held_out_path is None:
            return {}
        if self._demonstrations is None:
            self._demonstrations, self._reward = self._read(data, data.held_out_path, module)
        demonstrations = self._demonstrations
        with module.policy_for_inference() as policy:
            logprob = sequence_logprobs(
                policy, demonstrations.tokens, demonstrations.mask, token_budget=data.token_budget
            )
        nll = float(-logprob.sum() / demonstrations.mask.sum().clamp_min(1))
        return {"held_out/reward_per_token": self._reward, "held_out/nll": nll}

    def _read(self, data: RewardDataModule, held_out: Rows, module: Any) -> tuple[DemonstrationBatch, float]:
        tokenizer = module.tokenizer
        form = carried_format(tokenizer, module.policy)
        rows = tokenize_rows(
            open_rows(held_out), tokenizer, form, columns=data.columns, on_dropped="warn", limit=self.limit
        )
        rows.report.log_notes()
        demonstrations = rows.batch(np.arange(len(rows)), 1.0, int(tokenizer.pad_token_id))
        assert data.reward is not None
        data.reward.frozen.to(module.device)
        scores = data.reward.score(demonstrations.tokens, demonstrations.mask, token_budget=data.token_budget)
        return demonstrations, float(masked_mean(scores.reward, scores.mask))
