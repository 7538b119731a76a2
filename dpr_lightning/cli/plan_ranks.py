"""How the memory of a step is distributed over ranks: DDP, DeepSpeed's stages and FSDP2, by the bytes of weights."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from dpr_lightning.engine import weight_bytes
from dpr_lightning.errors import InputError
from dpr_lightning.policies.sharding import layer_names

ZERO = {"Zero1Strategy": 1, "Zero2Strategy": 2, "Zero3Strategy": 3}
GATHERED_BY_ZERO3 = 1_000_000_000
"""Number of parameters that DeepSpeed leaves gathered before it releases any (stage3_max_live_parameters)."""
FETCHED_BY_ZERO3 = 50_000_000
"""Number of parameters that it fetches at once, in memory twice until distributed (stage3_prefetch_bucket_size)."""


@dataclass(frozen=True)
class Ranks:
    """How state is distributed over ranks: ``kind`` is ``one``, ``ddp``, ``zero`` or ``fsdp2``."""

    kind: str
    count: int
    stage: int = 0
    bucket: int = 0
    offload: str = "nothing"
    sampling_weights: str = "auto"

    @classmethod
    def of(cls, trainer: dict[str, Any]) -> "Ranks":
        """Those of the trainer's options.

        Raises:
            InputError: the strategy is not known here.
        """
        devices = trainer["devices"]
        count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
        count *= int(trainer["num_nodes"])
        strategy = trainer["strategy"]
        if isinstance(strategy, str):
            return cls("ddp" if strategy.startswith("ddp") or count > 1 else "one", count)
        name, options = strategy["class_path"].rpartition(".")[2], strategy.get("init_args") or {}
        options = {**(strategy.get("dict_kwargs") or {}), **options}
        weights = str(options.get("sampling_weights", "auto"))
        if name in ZERO:
            bucket, offload = int(options.get("bucket_size", 200_000_000)), str(options.get("offload", "nothing"))
            return cls("zero", count, ZERO[name], bucket, offload, weights)
        if name == "Fsdp2Strategy":
            return cls("fsdp2", count, sampling_weights=weights)
        raise InputError(f"`dpr plan` knows ddp and the strategies of dpr_lightning.strategies, not {name}.")

    @property
    def shard_weights(self) -> bool:
        """Whether a rank has a shard of the weights alone."""
        return self.kind == "fsdp2" or self.stage == 3

    def gathered_for_inference(self, policy: nn.Module) -> int:
        """Bytes of weights that are gathered for a rollout: all, or a few layers at a time."""
        if self.count == 1 or not self.shard_weights:
            return 0
        return gathered_in_a_pass(policy) if self.sampling_weights == "shards" else weight_bytes(policy)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step of one process that has everything.

    ``weights``, ``gradients``, ``optimizer``: what stays; ``trainable``: bytes of the weights that are trained, which
    are ``elements`` numbers. ``peak``: the most at once, all included, ``gradients_at_peak`` of it gradients;
    ``working_peak``: the most at once without gradients.
    """

    weights: int
    trainable: int
    elements: int
    gradients: int
    optimizer: int
    peak: int
    gradients_at_peak: int
    working_peak: int

    @property
    def working(self) -> int:
        """Activations, logits and other temporaries at the peak."""
        return self.peak - self.weights - self.optimizer - self.gradients_at_peak

    @property
    def most_working(self) -> int:
        """The same at whatever moment there are most of them."""
        return self.working_peak - self.weights - self.optimizer


def step_of_rank(
    step: StepMemory, ranks: Ranks, policy: nn.Module, *, fetches_ahead: bool
) -> tuple[dict[str, int], int]:
    """Bytes of weights and optimizer that stay on a rank, and bytes that learning adds, gradients included.

    Args:
        step: of one process.
        ranks: that share it.
        policy: whose layers are gathered.
        fetches_ahead: whether DeepSpeed's third stage knows the next layers.
    """
    count, weights, optimizer, gradients = ranks.count, step.weights, step.optimizer, step.gradients_at_peak
    if ranks.kind == "fsdp2":
        layer, rest = _layer_bytes(policy)
        # One layer in use and one fetched ahead; in the backward pass also the gradients of one, once more unsharded.
        backward = step.working + gradients // count + 2 * layer
        learning = rest + 2 * layer + max(step.most_working, backward)
        return {"weights": weights // count, "optimizer": optimizer // count}, learning
    if ranks.kind == "zero":
        return _zero(step, ranks, fetches_ahead)
    stays = {"weights": weights, "optimizer": optimizer}
    if ranks.kind == "ddp" and count > 1:
        stays["buckets of gradients to exchange"] = step.gradients
    return stays, step.working + gradients


def _zero(step: StepMemory, ranks: Ranks, fetches_ahead: bool) -> tuple[dict[str, int], int]:
    """The same under DeepSpeed, where the optimizer steps a float32 copy of each rank's share of the weights."""
    count, weights, trained = ranks.count, step.weights, step.trainable
    element_bytes = trained // max(1, step.elements)
    share = 4 * step.elements // count
    stays = {
        "weights": weights // count if ranks.stage == 3 else weights,
        "float32 copies that the optimizer steps": share,
        "optimizer": step.optimizer * 4 // element_bytes // count,
        # Allocated at full size, however small the model: one is filled while another is sent.
        "buckets of gradients to exchange": (1 if ranks.stage == 3 else 2) * ranks.bucket * element_bytes,
    }
    if ranks.stage == 3:
        gathered = min(weights, GATHERED_BY_ZERO3 * element_bytes)
        if fetches_ahead:
            gathered += min(weights, FETCHED_BY_ZERO3 * element_bytes)
        learning = step.most_working + trained // count + gathered
    else:
        gradients = step.gradients_at_peak // (1 if ranks.stage == 1 else count)
        learning = max(step.most_working, step.working + gradients)
    # To step: the share's gradients, the same in one piece in float32, and temporaries of the optimizer.
    stepping = trained // count + 2 * share
    if ranks.offload != "nothing":
        stays["optimizer"] = stays["float32 copies that the optimizer steps"] = 0
    if ranks.offload == "everything":
        stays["weights"] = 0
    return stays, max(learning, stepping)


def gathered_in_a_pass(model: nn.Module) -> int:
    """Bytes that a model in shards gathers in a forward pass: a layer, the next one, and the weights outside layers."""
    layer, rest = _layer_bytes(model)
    return rest + 2 * layer


def _layer_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the largest layer, and of the weights outside layers."""
    names = layer_names(model)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    layer_bytes = [sum(weight.nbytes for weight in layer.parameters()) for layer in layers]
    return max(layer_bytes, default=0), weight_bytes(model) - sum(layer_bytes)
