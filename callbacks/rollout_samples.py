"""Shows what the policy writes while it learns: samples with their token rewards, and their verifier score."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from dpr_lightning.data import RewardDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.modules import RolloutAlgorithm
from dpr_lightning.paths import Writes
from dpr_lightning.policies import special_tokens
from dpr_lightning.rollouts import decode_answers, decode_tokens
from dpr_lightning.trainer_attributes import datamodule_of, is_trial

SAMPLES = Writes("rollout_samples.jsonl", marks=('"token_rewards"',))


class RolloutSamples(Callback):
    """Keeps samples of the rollouts in a growing W&B table and a JSONL file, and logs their verifier score.

    The verifier only scores; it is no part of the reward.

    Args:
        folder: receives ``rollout_samples.jsonl``; the trainer's root folder by default.
        every_n_rollouts: rollouts between samples.
        count: samples kept each time.
        verifier: name of a verifier or ``module:function``; None scores nothing.
    """

    COLUMNS = ("step", "prompt", "answer", "score", "reward", "length", "token_rewards")

    def __init__(
        self,
        folder: Annotated[str, SAMPLES] | None = None,
        every_n_rollouts: int = 20,
        count: int = 4,
        verifier: str | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.every_n_rollouts = every_n_rollouts
        self.count = count
        self.verifier = load_verifier(verifier) if verifier is not None else None
        self._table: Any = None
        self._seen = 0
        self._bytes = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has no rollouts.

        Raises:
            InputError: it learns from something else.
        """
        if not (isinstance(pl_module, RolloutAlgorithm) and isinstance(datamodule_of(trainer), RewardDataModule)):
            raise InputError(
                f"`trainer.callbacks`: RolloutSamples saves samples of rollouts, and {type(pl_module).__name__} learns "
                "from none. Take it out of the list."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file, or cut off what was written after the checkpoint that the run goes on from."""
        if trainer.is_global_zero and not is_trial(trainer) and self._file(trainer).is_file():
            os.truncate(self._file(trainer), min(self._bytes, self._file(trainer).stat().st_size))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at a rollout the first time it was trained on."""
        data = datamodule_of(trainer)
        assert isinstance(pl_module, RolloutAlgorithm)
        assert isinstance(data, RewardDataModule)
        rollout, number = pl_module.last_rollout, pl_module.rollout_count
        if rollout is None or number == self._seen or not trainer.is_global_zero:
            return
        self._seen = number
        if self.verifier is None and (number - 1) % self.every_n_rollouts:
            return
        prompts = data.prompts
        assert prompts is not None
        tokenizer, policy = pl_module.tokenizer, pl_module.policy
        texts = decode_answers(rollout.tokens, rollout.mask, tokenizer, special_tokens(tokenizer, policy))
        prompt_indices = rollout.prompt.tolist()
        scores: list[float | None] = [None] * len(texts)
        if self.verifier is not None:
            scores = [
                float(self.verifier(prompts.texts[index], text, prompts.metadata[index]))
                for index, text in zip(prompt_indices, texts, strict=True)
            ]
            pl_module.log("rollout/verifier", sum(float(score or 0) for score in scores) / len(scores))
        if (number - 1) % self.every_n_rollouts == 0:
            lengths = rollout.mask.sum(1).tolist()
            rows = [
                {
                    "step": trainer.global_step,
                    "prompt": prompts.texts[prompt_indices[row]],
                    "answer": texts[row],
                    "score": scores[row],
                    "reward": float(rollout.reward[row, : lengths[row]].sum()),
                    "length": lengths[row],
                    "token_rewards": [
                        [decode_tokens(tokenizer, [token]), round(float(reward), 4)]
                        for token, reward in zip(
                            rollout.tokens[row][rollout.mask[row]].tolist(), rollout.reward[row].tolist(), strict=False
                        )
                    ],
                }
                for row in range(min(self.count, len(texts)))
            ]
            self._keep(trainer, rows)

    def _keep(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        if is_trial(trainer):
            return
        path = self._file(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in rows)
            self._bytes = handle.tell()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log_table(logger, rows, trainer.global_step)

    def _file(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir) / "rollout_samples.jsonl"

    def state_dict(self) -> dict[str, Any]:
        """Rollouts seen, and the length of the file."""
        return {"seen": self._seen, "bytes": self._bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after them."""
        self._seen, self._bytes = int(state_dict["seen"]), int(state_dict["bytes"])

    def _log_table(self, logger: WandbLogger, rows: list[dict[str, Any]], step: int) -> None:
        import wandb

        # One table that grows: a new table under the same name would replace what is shown of the old one.
        if self._table is None:
            self._table = wandb.Table(columns=list(self.COLUMNS), log_mode="INCREMENTAL")
        for row in rows:
            self._table.add_data(*(json.dumps(row[name]) if name == "token_rewards" else row[name] for name in row))
        logger.experiment.log({"samples": self._table, "trainer/global_step": step})
