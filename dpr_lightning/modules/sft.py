"""Imitation: supervised fine-tuning, IQ-Learn, DFT and GCE are one module with four losses."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from dpr_lightning.engine import ActionLogits, acted_loss, action_logits, scored_actions, state_logits
from dpr_lightning.errors import InputError
from dpr_lightning.functional import (
    ValueForm,
    dft_loss,
    gce_loss,
    iq_learn_loss,
    masked_sum,
    sft_loss,
    token_logprobs,
)
from dpr_lightning.modules.base import PolicyModule, default_optimizer
from dpr_lightning.modules.noise_robust import GCESpec, OfTokens, TokenImitation, TrimSpec
from dpr_lightning.modules.non_finite import NonFinitePolicy
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.policies import PolicySpec, computes_router_loss, configured_coefficient, router_losses
from dpr_lightning.types import DemonstrationBatch

log = logging.getLogger(__name__)


@dataclass
class IQLearnSpec:
    """Options of the IQ-Learn loss.

    Args:
        value_form: ``value_expert`` (equals SFT for every discount without χ²) or ``v0`` (only at discount 1).
        discount: γ.
        chi2_alpha: α of the χ² regulariser (1/4α)·(Q − γV')²; None leaves it out.
        chi2_warmup_steps: optimizer steps over which 1/α rises from 0; 0: it starts whole. Logits carry an arbitrary
            offset per state that the policy ignores and χ² does not.
    """

    value_form: ValueForm = "value_expert"
    discount: float = 1.0
    chi2_alpha: float | None = None
    chi2_warmup_steps: int = 100


class SupervisedIRL(PolicyModule):
    """Learns a policy from demonstrations, and with it the reward that explains them.

    Args:
        policy: what to train.
        loss: ``sft`` (negative log-likelihood), ``iq_learn``, ``dft`` (−sg[π]·log π), or ``gce`` ((1 − π^q)/q).
        iq_learn: options of that loss.
        gce: options of that loss.
        trim: small weights for tokens that look wrong while training, not for ``iq_learn``; None: all have weight 1.
        optimizer: called with the trainable parameters.
        schedule: of the learning rate.
        seed: of weights initialised at random.
        non_finite: what to do about a gradient that is not finite: ``stop``, or ``skip`` the step and count it.
        router_loss_coefficient: weight of the experts' load-balancing loss beside the imitation loss, a mean over the
            micro-batches of a step by their tokens to learn; 0: none; None: what the model's config.json requests
            (``router_aux_loss_coef`` where ``output_router_logits`` is true).
    """

    step_metrics = ("train/nll", "train/tokens")
    validation_metrics = ("validation/nll", "validation/perplexity", "validation/token_accuracy")
    selection_metric = ("validation/nll", "min")

    def __init__(
        self,
        policy: PolicySpec,
        loss: Literal["sft", "iq_learn", "dft", "gce"] = "sft",
        iq_learn: IQLearnSpec | None = None,
        gce: GCESpec | None = None,
        trim: TrimSpec | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleSpec | None = None,
        seed: int = 0,
        non_finite: NonFinitePolicy = "stop",
        router_loss_coefficient: float | None = None,
    ) -> None:
        super().__init__(policy, optimizer, schedule, seed, non_finite)
        self.router_loss_coefficient = router_loss_coefficient
        if loss not in ("sft", "iq_learn", "dft", "gce"):
            raise InputError(f"There is no imitation loss {loss!r}; losses are sft, iq_learn, dft and gce.")
        if trim is not None and loss == "iq_learn":
            raise InputError("`trim` weights tokens of `loss: sft`, `dft` or `gce`; `iq_learn` takes no weights.")
        self.loss, self.trim = loss, trim
        self.iq_learn = iq_learn if iq_learn is not None else IQLearnSpec()
        self.gce = gce if gce is not None else GCESpec()
        self.metrics = torch.nn.ModuleDict({"nll": MeanMetric(), "token_accuracy": MeanMetric()})

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """Names of all that is logged in training."""
        return (*super().train_metrics, *(("train/trimmed_share",) if self.trim is not None else ()))

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """One micro-batch's share of the optimizer step's loss."""
        if self.router_coefficient:
            with router_losses(self.policy, batch.mask) as router:
                loss, logprob, mask, trimmed = self._imitated(batch)
            # Each micro-batch weighs as much as it has tokens to learn, so that a step's weights add up to 1.
            loss = loss + self.router_coefficient * router[-1] * mask.sum() / batch.num_tokens
            sums = {"router_loss": router[-1].detach() * mask.sum()}
        else:
            loss, logprob, mask, trimmed = self._imitated(batch)
            sums = {}
        if self.trim is not None:
            sums["trimmed_share"] = trimmed.to(loss.dtype)
        self.non_finite.watch(batch.row, {"log_probability": logprob}, mask)
        # Else the loss is the same number.
        apart = self.loss != "sft" or self.router_coefficient != 0 or batch.weights is not None or self.trim is not None
        nll = -masked_sum(logprob, mask)
        self.log_step({"nll": nll, **sums}, mask.sum(), loss, prog_bar=("nll",) if apart else ())
        self.log("train/tokens", batch.num_tokens)
        return self.to_step_loss(loss)

    def settle_router_loss(self, model: nn.Module) -> float:
        """The coefficient that the option or the model's configuration requests.

        Raises:
            InputError: the option requests a loss that the architecture has not.
        """
        option, configured = self.router_loss_coefficient, configured_coefficient(model)
        computes, kind = computes_router_loss(model), type(model).__name__
        if option and not computes:
            raise InputError(
                f"`model.router_loss_coefficient` is {option:g}, but transformers computes no load-balancing loss for "
                "this model. Leave it out."
            )
        if configured and not computes:
            log.warning("config.json requests a load-balancing loss, which transformers does not compute for %s.", kind)
        coefficient = (configured if option is None else option) if computes else 0.0
        if self.capabilities.experts and not coefficient:
            log.warning(
                "The model has %d experts a layer, and no load-balancing loss is added%s.",
                self.capabilities.experts,
                "; `model.router_loss_coefficient` adds one" if computes and option is None else "",
            )
        return coefficient

    def _trim(self) -> TrimSpec | None:
        """The limits of this step; None: no token is trimmed, or not yet."""
        return self.trim if self.trim is not None and self._progress >= self.trim.after else None

    def _of_tokens(self) -> OfTokens:
        """The loss of this step's tokens."""
        if self.loss == "gce" and self._progress >= self.gce.after:
            return partial(gce_loss, q=self.gce.q)
        return dft_loss if self.loss == "dft" else sft_loss

    @property
    def _progress(self) -> float:
        """Share of the run's optimizer steps that were taken."""
        return self.global_step / self.schedule.steps(self.trainer)

    def _imitated(self, batch: DemonstrationBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, log-probabilities [B, T] of the demonstrated tokens with their mask, and how many are trimmed."""
        if self.loss == "iq_learn":
            # The soft value of a state is no function of log-probabilities, so it takes the logits.
            states = state_logits(self.policy, batch.tokens, batch.mask)
            logprob = token_logprobs(states.logits[:, : states.tokens.shape[1]], states.tokens)
            return self._iq_learn_loss(states, batch), logprob.detach(), states.mask, logprob.new_zeros(())
        weights = None if batch.weights is None else batch.weights[batch.mask]
        token_loss = TokenImitation(self._of_tokens(), batch.num_tokens, weights, self._trim())
        scored = acted_loss(self.policy, batch.tokens, batch.mask, token_loss)
        return scored.loss, scored.logprob, scored.mask, token_loss.trimmed

    def _iq_learn_loss(self, scored: ActionLogits, batch: DemonstrationBatch) -> Tensor:
        if batch.weights is not None:
            raise InputError(
                "Rows have `loss_spans` with weights other than 0 and 1, and `loss: iq_learn` takes no weights: the "
                "value of a state is that of all its tokens. Choose `loss: sft` or `dft`, or set those weights to 0."
            )
        options = self.iq_learn
        alpha = options.chi2_alpha
        if alpha is not None:
            warmup = options.chi2_warmup_steps
            share = min(1.0, self.global_step / warmup) if warmup > 0 else 1.0
            alpha = alpha / share if share > 0 else None
        # Both forms are divided by the tokens of the whole optimizer step, so that a learning rate suits all losses.
        return iq_learn_loss(
            scored.logits,
            scored.tokens,
            scored.mask,
            batch.terminated,
            discount=options.discount,
            value_form=options.value_form,
            chi2_alpha=alpha,
            normaliser=batch.num_tokens,
        )

    def validation_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        """Accumulate token-weighted metrics over the whole validation set and all ranks."""
        scored = scored_actions(self.policy, batch.tokens, batch.mask)
        count = torch.tensor(len(scored.logprob), device=scored.logprob.device)
        self._metric("nll").update(-scored.logprob.sum() / count.clamp_min(1), count)
        self._metric("token_accuracy").update(scored.is_first.sum() / count.clamp_min(1), count)

    def on_validation_epoch_end(self) -> None:
        """Log negative log-likelihood (nats a token), perplexity and token accuracy."""
        nll = self._metric("nll").compute()
        self.log_dict(
            {
                "validation/nll": nll,
                "validation/perplexity": nll.exp(),
                "validation/token_accuracy": self._metric("token_accuracy").compute(),
            },
            prog_bar=True,
            sync_dist=False,
        )
        for name in self.metrics:
            self._metric(name).reset()

    def predict_step(self, batch: DemonstrationBatch, batch_idx: int) -> dict[str, Tensor]:
        """How likely the policy finds each demonstrated token.

        Returns:
            ``row`` [B], place of the example in its data set; ``logprob`` [B, T], nats; ``mask`` [B, T].
        """
        scored = action_logits(self.policy, batch.tokens, batch.mask)
        logprob = token_logprobs(scored.logits, scored.tokens).masked_fill(~scored.mask, 0.0)
        return {"row": batch.row, "logprob": logprob, "mask": scored.mask}

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _metric(self, name: str) -> MeanMetric:
        metric = self.metrics[name]
        assert isinstance(metric, MeanMetric)
        return metric
