"""The run whose memory ``dpr plan`` counts: Lightning's own loop over tensors without content."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dpr_lightning.cli.plan_ranks import Ranks, StepMemory, gathered_in_a_pass
from dpr_lightning.data import PolicyDataModule
from dpr_lightning.errors import counted
from dpr_lightning.live_bytes import LiveBytes, tensors_in
from dpr_lightning.modules.base import PolicyModule
from dpr_lightning.policies import FrozenPolicies, PolicyStrategy, Weights
from dpr_lightning.policies.adapters import resolve_adapter
from dpr_lightning.policies.outline import materialise, outline_verifier_head
from dpr_lightning.policies.policy_spec import AUTO, Dtype
from dpr_lightning.policies.without_content import without_content

Precision = Literal["32-true", "bf16-mixed"]
_IN_SHARDS = SimpleNamespace(name="NOT_AVAILABLE")


class CountedRun(Callback):
    """Two optimizer steps of a module, on tensors without content; implements :class:`MemoryCount`.

    Args:
        module: that learns.
        data: that it learns from.
        ranks: of the run.

    Attributes:
        policy: the module's, after :meth:`run`.
        step: of one process.
        stays: bytes of frozen models, by name.
        phases: bytes that sampling and scoring add, by name.
        largest: rows and tokens of the largest micro-batch.
        gathers_policy: whether the policy's weights are gathered whole before it learns.
    """

    def __init__(self, module: PolicyModule, data: PolicyDataModule, ranks: Ranks) -> None:
        self.module, self._data, self._shared = module, data, ranks
        self.ranks = ranks.count
        self.stays: dict[str, int] = {}
        self.phases: dict[str, int] = {}
        self.largest = (0, 0)
        self._live = LiveBytes()
        self._steps = False
        self._optimizer: int | None = None
        self._frozen = 0
        self._is_first = False

    def run(self, precision: Precision, accumulate: int, clip: float | None) -> None:
        """Train. The policy is built without weights, and of its folder only config.json is read."""
        module, live = self.module, self._live
        strategy = _OneProcess(self._shared)
        with _quiet():
            trainer = Trainer(
                barebones=True,
                accelerator="cpu",
                devices=1,
                strategy=strategy,
                precision=precision,
                accumulate_grad_batches=accumulate,
                gradient_clip_val=clip,
                max_steps=2,
                callbacks=[self],
            )
            strategy.connect(module)
            module.trainer = self._data.trainer = trainer
            with without_content(), live:
                module.policy = self.policy = materialise(module.outline())
                self._weights = live.live
                module.prepare_policy()
                if self._shared.shard_weights:
                    _shard(self.policy, everywhere=self._shared.kind == "zero")
                live.watch_gradients(self.policy)
                trained = [weight for weight in self.policy.parameters() if weight.requires_grad]
                trainer.fit(module, self._data.counted_batches(self))
        self.gathers_policy = strategy.gathered
        assert self._optimizer is not None
        self.step = StepMemory(
            weights=self._weights,
            trainable=sum(weight.nbytes for weight in trained),
            elements=sum(weight.numel() for weight in trained),
            gradients=self._gradients,
            optimizer=self._optimizer,
            peak=live.peak - self._frozen,
            gradients_at_peak=live.gradients_at_peak,
            working_peak=live.working_peak - self._frozen,
        )

    def frozen_models(
        self, folders: Mapping[str, str], dtype: Dtype, attention: str, weights: Weights = "whole"
    ) -> FrozenPolicies:
        """As :class:`MemoryCount` describes it."""
        before, spec = self._live.live, self.module.policy_spec
        dtype = spec.dtype if dtype == AUTO else dtype  # the models are counted in the shape of the policy
        frozen = FrozenPolicies.outline(folders, dtype=dtype, attention=attention, policy=self.policy, policy_spec=spec)
        of_rank = self._live.live - before
        self._frozen += of_rank
        if frozen.is_shared:
            name = f"{counted(len(folders), 'frozen adapter')} on its base"
        elif weights == "shards" and self.ranks > 1:
            name, of_rank = f"{counted(len(folders), 'frozen model')}, in shards", of_rank // self.ranks
            for model in frozen.models:
                _shard(model, everywhere=False)
                _gather_in_passes(model)
        else:
            name = counted(len(folders), "frozen model")
        self.stays[name] = self.stays.get(name, 0) + of_rank
        return frozen

    def frozen_head(self, dtype: Dtype) -> nn.Module:
        """As :class:`MemoryCount` describes it."""
        before, (base, _) = self._live.live, resolve_adapter(self.module.policy_spec)
        spec = replace(base, dtype=base.dtype if dtype == AUTO else dtype, lora=None, checkpoint=None)
        head = materialise(outline_verifier_head(spec)).eval().requires_grad_(False)
        self.stays["verifier head"] = self._live.live - before
        self._frozen += self.stays["verifier head"]
        return head

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As :class:`MemoryCount` describes it."""
        live = self._live
        before, peaks = live.live, (live.peak, live.gradients_at_peak, live.working_peak)
        live.reset()
        yield
        self.phases[name] = max(self.phases.get(name, 0), live.peak - before)
        live.peak, live.gradients_at_peak, live.working_peak = peaks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count copies of weights that the optimizer has made."""
        self._copies = self._live.live - self._weights - self._frozen

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the shape of a micro-batch; forget what came before the second step."""
        if self._is_first:
            self._live.reset()
            self._is_first = False
        tokens = next(value for value in tree_leaves(batch) if isinstance(value, Tensor) and value.ndim == 2)
        self.largest = max(self.largest, (tokens.shape[0], tokens.shape[1]))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note that this batch ends a step, and the bytes of its gradients."""
        self._steps, self._gradients = True, self._live.gradients

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step, count the optimizer's state; the module frees the gradients next."""
        if not self._steps:
            return
        if self._optimizer is None:
            state = list(trainer.optimizers[0].state.values())
            self._optimizer, self._is_first = self._copies + sum(part.nbytes for part in tensors_in(state)), True
        self._steps = False
        self._live.gradients_freed()


class _OneProcess(SingleDeviceStrategy, PolicyStrategy):
    """The strategy of a counted run: a process has all weights, marked where those of ``ranks`` are in shards."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(torch.device("cpu"))
        self._ranks = ranks
        self.shards_layers = ranks.kind == "fsdp2"
        self.gathered = False

    def model_to_device(self) -> None:
        """Weights without content are nowhere."""

    def teardown(self) -> None:
        """Weights without content are nowhere."""

    @contextmanager
    def gather_for_inference(self, model: nn.Module) -> Iterator[None]:
        """Inside, the bytes that a rank gathers are allocated, and weights that it gathers are not marked."""
        gathered = self._ranks.gathered_for_inference(model)
        buffer = torch.empty(gathered // 2, dtype=torch.float16)
        whole = gathered and self._ranks.sampling_weights != "shards"
        if whole:
            self.gathered = True
            for weight in model.parameters():
                vars(weight).pop("ds_status")
        yield
        if whole:
            _shard(model, everywhere=self._ranks.kind == "zero")
        del buffer


def _shard(model: nn.Module, *, everywhere: bool) -> None:
    """Mark weights as DeepSpeed does those in shards; ``everywhere``: also those of a layer that computes."""
    for weight in model.parameters():
        vars(weight)["ds_status"] = _IN_SHARDS
        if everywhere:
            vars(weight).update(ds_id=0, ds_numel=weight.numel(), ds_shape=weight.shape)


def _gather_in_passes(model: nn.Module) -> None:
    """Have the forward passes of a model in shards allocate what they gather."""
    buffers: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda *_: buffers.append(torch.empty(gathered_in_a_pass(model) // 2, dtype=torch.float16))
    )
    model.register_forward_hook(lambda *_: buffers.clear())


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, Lightning reports neither its version of a run without output, nor what such a run leaves out."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "dpr_lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
