"""The share of prompts that the policy in training answers right."""

import logging
from typing import Any

import numpy as np
import torch
from lightning import Trainer

from dpr_lightning.callbacks.periodic_evaluation import PeriodicEvaluation
from dpr_lightning.data import PolicyDataModule, PromptSet, Rows, RowSource
from dpr_lightning.distributed import sum_over_ranks
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.evaluated_answers import collect_answers
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.trainer_attributes import datamodule_of

log = logging.getLogger(__name__)


class GenerationEvaluation(PeriodicEvaluation):
    """Logs the share of evaluation prompts answered right, greedily and sampled.

    Args:
        prompts: rows with prompts and what the verifier needs (``answer``, ``metadata``). None: the rows that the run's
            DataModule holds out: ``data.validation`` of demonstrations, ``data.held_out`` of prompts.
        verifier: name of a verifier, or ``module:function``.
        max_new_tokens: length limit of an answer.
        temperatures: one score is logged for each; 0 is greedy.
        every_n_steps: optimizer steps between evaluations.
        limit: use the first so many prompts.
        columns: names of columns of ``prompts``, as in the DataModules.
        seed: of the samples.
    """

    def __init__(
        self,
        prompts: Rows | None = None,
        verifier: str = "exact_match",
        max_new_tokens: int = 256,
        temperatures: list[float] | None = None,
        every_n_steps: int = 100,
        limit: int | None = None,
        columns: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps)
        self.prompts_path = prompts
        self.verifier = load_verifier(verifier)
        self.max_new_tokens = max_new_tokens
        self.temperatures = temperatures if temperatures is not None else [0.0, 1.0]
        self.limit = limit
        self.columns = columns
        self.seed = seed
        self._prompts: PromptSet | None = None

    @property
    def prompt_count(self) -> int | None:
        """Number of prompts that are answered; None before the first evaluation."""
        return None if self._prompts is None else len(self._prompts)

    def metric_names(self) -> list[str]:
        """A score and a length for each temperature."""
        return [f"evaluation/{kind}{_name(each)}" for each in self.temperatures for kind in ("", "length_")]

    def measure(self, trainer: Trainer, module: Any) -> dict[str, float]:
        """Scores and lengths, by temperature; each rank asks its share of the prompts."""
        if self._prompts is None:
            rows, columns = self._rows(trainer)
            self._prompts = PromptSet.load(rows, module.tokenizer, columns=columns, limit=self.limit)
            if trainer.is_global_zero:
                self._report(self._prompts, trainer)
        share = list(range(trainer.global_rank, len(self._prompts), trainer.world_size))
        scores: dict[str, float] = {}
        with module.policy_for_inference() as policy:
            for temperature in self.temperatures:
                answers = collect_answers(
                    policy,
                    module.tokenizer,
                    self._prompts,
                    SamplingOptions(self.max_new_tokens, temperature),
                    verifier=self.verifier,
                    seed=self.seed,
                    indices=share or [0],
                )
                assert answers.scores is not None
                # A rank without a share keeps the others company, and counts nothing.
                parts = (sum(answers.scores), sum(answers.lengths), len(answers.lengths)) if share else (0, 0, 0)
                score, length, count = sum_over_ranks(torch.tensor(parts, dtype=torch.float64)).tolist()
                name = _name(temperature)
                scores[f"evaluation/{name}"] = score / count
                scores[f"evaluation/length_{name}"] = length / count
        return scores

    def _rows(self, trainer: Trainer) -> tuple[Rows | RowSource, dict[str, str] | None]:
        """The rows with the prompts, and the names of their columns.

        Raises:
            InputError: neither this nor the DataModule has any.
        """
        data = datamodule_of(trainer)
        rows = data.held_out_rows() if isinstance(data, PolicyDataModule) else None
        if self.prompts_path is None:
            if rows is None:
                raise InputError(
                    "GenerationEvaluation has no `prompts`, and the run's data hold out no rows: set `data.validation` "
                    "(of demonstrations) or `data.held_out` to a file, or `prompts` of the callback."
                )
            return rows
        return self.prompts_path, self.columns

    def _report(self, prompts: PromptSet, trainer: Trainer) -> None:
        """Log that the prompts are not those of the run's data, and how many of them are learnt from."""
        data = datamodule_of(trainer)
        if self.prompts_path is None or not isinstance(data, PolicyDataModule):
            return
        rows, learnt = data.held_out_rows(), data.learnt_prompt_hashes()
        if rows is None or self.prompts_path != rows[0]:
            log.warning("GenerationEvaluation: the prompts are those of %s, not of the run's data.", self.prompts_path)
        shared = int(np.isin(prompts.prompt_hashes, learnt).sum())
        if shared:
            log.warning(
                "GenerationEvaluation: the run also learns from %s of its %s: scores tell what was learnt by heart.",
                f"{shared:,}",
                counted(len(prompts), "prompt"),
            )


def _name(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"sampled_T{temperature:g}"
