"""Lets the policy answer evaluation prompts at validation time and scores what it writes."""

from lightning import Callback, LightningModule, Trainer

from dpr_lightning.data import PromptSet
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.answers import collect_answers
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.rollouts import SamplingOptions


class GenerationEvaluation(Callback):
    """Logs the share of evaluation prompts answered right, greedily and sampled.

    Args:
        prompts: file with prompts and what the verifier needs (``answer``, ``metadata``).
        verifier: name of a verifier, or ``module:function``.
        max_new_tokens: length limit of an answer.
        temperatures: one score is logged for each; 0 is greedy.
        every_n_steps: optimizer steps between evaluations.
        limit: use the first so many prompts.
        columns: names of columns, as in the DataModules.
        seed: of the samples.
    """

    def __init__(
        self,
        prompts: str,
        verifier: str = "exact_match",
        max_new_tokens: int = 256,
        temperatures: list[float] | None = None,
        every_n_steps: int = 100,
        limit: int | None = None,
        columns: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise InputError("`every_n_steps` must be at least 1.")
        self.prompts_path = prompts
        self.verifier = load_verifier(verifier)
        self.max_new_tokens = max_new_tokens
        self.temperatures = temperatures if temperatures is not None else [0.0, 1.0]
        self.every_n_steps = every_n_steps
        self.limit = limit
        self.columns = columns
        self.seed = seed
        self._prompts: PromptSet | None = None
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the policy as it is before the first step."""
        self._evaluate(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """Score every so many optimizer steps."""
        step = trainer.global_step
        if step and step % self.every_n_steps == 0 and not trainer.fit_loop._should_accumulate():
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the end of the run."""
        self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        if self._prompts is None:
            self._prompts = PromptSet.load(
                self.prompts_path,
                module.tokenizer,  # type: ignore[arg-type]
                columns=self.columns,
                limit=self.limit,
            )
        scores: dict[str, float] = {}
        for temperature in self.temperatures:
            answers = collect_answers(
                module.policy,  # type: ignore[arg-type]
                module.tokenizer,  # type: ignore[arg-type]
                self._prompts,
                SamplingOptions(self.max_new_tokens, temperature),
                verifier=self.verifier,
                seed=self.seed,
            )
            name = "greedy" if temperature == 0 else f"sampled_T{temperature:g}"
            scores[f"evaluation/{name}"] = answers.score
            scores[f"evaluation/length_{name}"] = answers.length
        for logger in trainer.loggers:
            logger.log_metrics(scores, trainer.global_step)
