"""What both modules share: a policy built in place, one token count a step, an optimizer named in YAML."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.policy_data import PolicyDataModule
from dpr_lightning.distributed import mark, sum_over_ranks
from dpr_lightning.engine import is_sharded
from dpr_lightning.engine.decoding import sampling_route
from dpr_lightning.engine.fused_optimizer import use_fused_step
from dpr_lightning.engine.host_memory import retain_freed_memory
from dpr_lightning.engine.master_weights import HALF, MasterWeights
from dpr_lightning.errors import InputError
from dpr_lightning.modules.non_finite import NonFinitePolicy, NonFiniteSteps
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import (
    PolicySpec,
    PolicyStrategy,
    as_policy_strategy,
    build_policy,
    capabilities_of,
    check_policy,
    configured_coefficient,
)
from dpr_lightning.policies.outline import outline_policy
from dpr_lightning.trainer_attributes import datamodule_of

log = logging.getLogger(__name__)


def default_optimizer(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW at 1e-4 without weight decay; configs spell out their own."""
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)


def _unchanged(data: Any) -> Any:
    return data


class PolicyModule(LightningModule):
    """A LightningModule around one policy in training.

    Args:
        policy: what to build; the model itself is built in ``configure_model``, under the strategy's context.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of weights initialised at random.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.
    """

    policy: nn.Module
    tokenizer: PreTrainedTokenizerBase
    step_metrics: ClassVar[tuple[str, ...]] = ()
    """What this module logs in training, beside the loss and the gradient: callbacks may monitor it."""
    validation_metrics: ClassVar[tuple[str, ...]] = ()
    """What it logs where there is validation."""
    selection_metric: ClassVar[tuple[str, Literal["min", "max"]] | None] = None
    """The one of them by which `run.best` and `run.early_stopping` compare policies, and whether less or more is
    better."""
    stage: ClassVar[str] = "sft"
    """Name of this module's entry in the manifest of a run."""
    unit: ClassVar[str] = "tokens"
    """What its loss is an average of, for a rate of training."""
    reference_fractions: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75)
    """Shares of a run at which `dpr fit` saves the policy by default, as references of a dense reward."""

    def __init__(
        self,
        policy: PolicySpec,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__()
        self.policy_spec = policy
        self.optimizer_callable = optimizer
        self.schedule = schedule if schedule is not None else ScheduleSpec()
        self.seed = seed
        self.non_finite = NonFiniteSteps(non_finite)
        self.router_coefficient = 0.0
        self._step_sums: Tensor | None = None
        self._units: Tensor | None = None
        self._gradient_norm: float | None = None

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """Names of all that is logged in training."""
        skipped = ("train/skipped_steps",) if self.non_finite.policy == "skip" else ()
        return ("train/loss", "train/gradient_norm", *skipped, *self.step_metrics)

    def setup(self, stage: str) -> None:
        """Called before training: leave the precision of batches unchanged, and retain freed memory on a CPU.

        A policy is given token ids alone. The numbers beside them (token counts, rewards, log-probabilities) are no
        inputs of a model, and in bfloat16 a count of 1,001 tokens is 1,000 and a log-probability of −8.03 is −8.
        """
        self.trainer.precision_plugin.convert_input = _unchanged  # type: ignore[method-assign]
        if self.trainer.strategy.root_device.type == "cpu":
            retain_freed_memory()

    def check_policy(self) -> None:
        """Called before anything is read: refuse a policy that its configuration shows to be impossible.

        Raises:
            InputError: says what is wrong with it.
        """
        check_policy(self.policy_spec)

    def configure_model(self) -> None:
        """Build the policy once, and show it to the data, which may have something to do with it."""
        if "policy" in self._modules:
            return
        self.policy, self.tokenizer = self.build()
        self.prepare_policy()
        if self._trainer is None:
            return
        data = datamodule_of(self._trainer)
        if isinstance(data, PolicyDataModule):
            data.attach_policy(self.policy, self.policy_spec, self.tokenizer)
        self.policy_strategy.shard(self.policy)

    def build(self) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """The model in training, and its tokenizer. A module that builds another model also overrides :meth:`outline`.

        Raises:
            InputError: it cannot be loaded, or is not causal.
        """
        model, tokenizer = build_policy(self.policy_spec, seed=self.seed)
        self.capabilities = capabilities_of(model, self.policy_spec.source or "The policy")
        self.router_coefficient = self.settle_router_loss(model)
        return model, tokenizer

    def outline(self) -> nn.Module:
        """Called by ``dpr plan`` in place of :meth:`build`: the model without weights, on PyTorch's meta device.

        Raises:
            InputError: its configuration cannot be read.
        """
        model = outline_policy(self.policy_spec)
        self.capabilities = capabilities_of(model, self.policy_spec.source or "The policy")
        self.router_coefficient = self.settle_router_loss(model)
        return model

    def settle_router_loss(self, model: nn.Module) -> float:
        """Called when the policy is built: the coefficient of its experts' load-balancing loss; by default 0.

        What a configuration requests and a module leaves out is said.
        """
        if configured_coefficient(model) > 0:
            log.warning(
                "The model's config.json requests a load-balancing loss of its experts (output_router_logits). "
                "%s leaves it out: SupervisedIRL alone adds it.",
                type(self).__name__,
            )
        return 0.0

    def prepare_policy(self) -> None:
        """Change the policy before anything uses it; by default nothing."""

    @property
    def policy_strategy(self) -> PolicyStrategy:
        """How the run's strategy holds the policy."""
        return as_policy_strategy(self.trainer.strategy)

    @contextmanager
    def policy_for_inference(self) -> Iterator[nn.Module]:
        """The policy to sample from or to score with, whole or in shards as the strategy likes. All ranks enter.

        In shards, what asks keeps ranks in step: :class:`dpr_lightning.policies.Lockstep`.
        """
        with self.policy_strategy.gather_for_inference(self.policy):
            yield self.policy

    @contextmanager
    def full_policy(self) -> Iterator[nn.Module]:
        """The policy with all its weights on this rank, for what one rank does alone. All ranks must enter.

        Raises:
            InputError: a strategy holds the weights in shards and cannot bring them together.
        """
        with self.policy_strategy.gather_all(self.policy):
            yield self.policy

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable parameters, and its schedule."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        if self._takes_copies and any(weight.dtype in HALF for weight in weights):
            optimizer: torch.optim.Optimizer = MasterWeights(weights, self._built_optimizer)
        else:
            optimizer = self._built_optimizer(weights)
        self._optimizer_options = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        scheduler = self.schedule.build(optimizer, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _built_optimizer(self, weights: Iterable[Any]) -> torch.optim.Optimizer:
        optimizer = self.optimizer_callable(weights)
        # Where weights are to move to a GPU after this, how to step there is PyTorch's choice.
        return use_fused_step(optimizer) if self.trainer.strategy.root_device.type == "cpu" else optimizer

    @property
    def _takes_copies(self) -> bool:
        """Whether half-precision weights are stepped in float32 here: DeepSpeed does that itself, FSDP2 differently."""
        steps_shards = self.policy_strategy.holds_gradients or is_sharded(self.policy)
        return self.policy_spec.master_weights and not steps_shards

    def on_fit_start(self) -> None:
        """Find out how the policy is sampled before hours of training, which later stages would not be able to use."""
        sampling_route(self.policy)

    def on_train_start(self) -> None:
        """What the command line says of the optimizer wins over what a checkpoint remembers."""
        for options, group in zip(self._optimizer_options, self.trainer.optimizers[0].param_groups, strict=True):
            group |= {name: value for name, value in options.items() if name != "lr"}
            before = group.get("initial_lr", options["lr"])
            if before != options["lr"]:
                group["lr"] *= options["lr"] / before
                group["initial_lr"] = options["lr"]
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [options["lr"] for options in self._optimizer_options]

    def on_validation_start(self) -> None:
        """Let other ranks know."""
        mark("validation")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw dropout from a stream that the step names, so that a resumed run draws the same."""
        mark(f"step {self.trainer.global_step + 1}, micro-batch {batch_idx}")
        key = (self.seed, self.trainer.global_step, batch_idx, self.trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def refuse_other_start(self, difference: float, frozen: str, option: str) -> None:
        """At the first step the policy is the frozen one it is measured against.

        Args:
            difference: nats a token between the two.
            frozen: what the frozen one is.
            option: that names its folder.

        Raises:
            InputError: they differ by more than rounding explains.
        """
        if difference > self.start_tolerance:
            raise InputError(
                f"The policy does not start as {frozen}: their log-probabilities differ by {difference:.3g} nats a "
                f"token (allowed: {self.start_tolerance}). Point `model.policy` and `{option}` at the same checkpoint, "
                "with the same dtype; or set `check_start: false` if this is meant."
            )

    @property
    def start_tolerance(self) -> float:
        """Nats a token by which rounding may separate two passes over the same weights."""
        weight = next(self.policy.parameters())
        exact = weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(weight.device.type)
        return 1e-3 if exact else 0.05

    def to_step_loss(self, loss: Tensor) -> Tensor:
        """Undo the averages that the trainer takes over accumulated micro-batches and over ranks.

        A loss that was divided by the token count of the *whole* optimizer step must be summed, not averaged; then one
        accumulated step equals one big batch.
        """
        return loss * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def log_step(
        self, sums: Mapping[str, Tensor], tokens: Tensor, loss: Tensor, *, prog_bar: Sequence[str] = ()
    ) -> None:
        """Log averages per token over all micro-batches and ranks of an optimizer step, once it is complete.

        Micro-batches hold rows of like length, so that the last one alone would speak for the longest rows only.

        Args:
            sums: for each name, the sum over the tokens of this micro-batch (this rank's).
            tokens: their number.
            loss: this micro-batch's share of the step's loss.
            prog_bar: names that the progress bar shows.
        """
        values = {**sums, "tokens": tokens, "loss": loss}
        added = torch.stack([value.detach().double() for value in values.values()])
        self._step_sums = added if self._step_sums is None else self._step_sums + added
        if self.trainer.fit_loop._should_accumulate():
            return
        total, self._step_sums = sum_over_ranks(self._step_sums), None
        self._units = total[-2] if self._units is None else self._units + total[-2]
        count = total[-2].clamp_min(1)
        self.log("train/loss", total[-1], prog_bar=True)
        for name, value in zip(sums, total, strict=False):
            self.log(f"train/{name}", value / count, prog_bar=name in prog_bar)

    def trained_units(self) -> float:
        """The number of tokens (or what else :attr:`unit` names) in all steps of this process, over all ranks."""
        return 0.0 if self._units is None else float(self._units)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Know the gradient's norm before clipping; without a finite one, let the optimizer find no gradients."""
        gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
        if not gradients or self.policy_strategy.holds_gradients:
            return
        norm = get_total_norm(gradients)
        self._gradient_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self.log("train/gradient_norm", self._gradient_norm)
        if not math.isfinite(self._gradient_norm) and not self._scales_loss:
            for weight in self.parameters():
                weight.grad = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the gradient's norm, which some strategies know only after the step; report a step that was left out.

        Raises:
            InputError: the gradient was not finite, and that ends the run.
        """
        if self.trainer.fit_loop._should_accumulate():
            return
        strategy = self.policy_strategy
        if strategy.holds_gradients:
            norm = strategy.gradient_norm()
            if norm is not None:
                self.log("train/gradient_norm", norm)
        else:
            norm = self._gradient_norm
            # Lightning would keep them through the next forward pass, in addition to its activations.
            self.zero_grad()
        self._gradient_norm = None
        finite = True
        if norm is not None and not math.isfinite(norm) and not self._scales_loss:
            finite = False
            rank = f".rank_{self.global_rank}" if self.trainer.world_size > 1 else ""
            file = Path(self.trainer.default_root_dir) / f"non_finite{rank}.jsonl"
            data = datamodule_of(self.trainer)
            row_name = data.where if isinstance(data, PolicyDataModule) else str
            self.non_finite.report(file, self.global_step - 1, norm, row_name)
        self.non_finite.end_step(finite)
        if self.non_finite.policy == "skip":
            self.log("train/skipped_steps", self.non_finite.skipped)

    @property
    def _scales_loss(self) -> bool:
        """Whether float16's loss scaling is looking for infinities itself, and finds some as a matter of course."""
        if self.policy_strategy.holds_gradients:
            return str(self.trainer.precision).startswith("16")  # DeepSpeed scales `16-true` too
        precision = self.trainer.precision_plugin
        return isinstance(precision, MixedPrecision) and precision.scaler is not None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """How many steps were left out is a part of a checkpoint."""
        checkpoint["skipped_steps"] = self.non_finite.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.non_finite.skipped = int(checkpoint.get("skipped_steps", 0))
