"""``dpr plan``: the memory that a config takes on each rank, counted without a GPU."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dpr_lightning.cli.plan_algorithm import algorithm_to_count
from dpr_lightning.data.demonstrations import DEFAULT_TOKEN_BUDGET
from dpr_lightning.engine import is_known_decoder, token_budget_for, weight_bytes
from dpr_lightning.engine.decoding import packed_bytes
from dpr_lightning.engine.master_weights import MasterWeights
from dpr_lightning.engine.output_head import bare_head
from dpr_lightning.errors import InputError, counted, first_line
from dpr_lightning.lightning_cli.dpr_cli import parse_lightning
from dpr_lightning.modules.memory import (
    Shape,
    StepMemory,
    algorithm_loss,
    all_actions_step_loss,
    imitation_loss,
    reinforce_loss,
    sampling_memory,
    scoring_memory,
    training_memory,
)
from dpr_lightning.modules.rollout_algorithm import RolloutAlgorithm
from dpr_lightning.policies import LoraSpec, PolicySpec
from dpr_lightning.policies.adapters import is_adapter
from dpr_lightning.policies.outline import GroupedProducts, materialise, outline_policy
from dpr_lightning.policies.sharding import layer_names
from dpr_lightning.rollouts import SamplingOptions

ZERO = {"Zero1Strategy": 1, "Zero2Strategy": 2, "Zero3Strategy": 3}
COUNTED = ("SupervisedIRL", "DensePathReinforce")
"""Modules whose losses are restated in modules/memory.py."""
WHAT_HELPS = "--what_helps"
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


@dataclass(frozen=True)
class Plan:
    """Bytes of a rank: those that stay throughout, by name, and those that each phase adds."""

    stays: dict[str, int]
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        """The largest sum at one time."""
        return sum(self.stays.values()) + max(self.phases.values())

    def __str__(self) -> str:
        """A table, in MiB."""
        lines = [f"{'a rank holds':<42}{'MiB':>12}"]
        lines += [f"  {name:<40}{value / 2**20:>12,.1f}" for name, value in self.stays.items()]
        lines += [f"{'and beside it, one after the other':<42}"]
        lines += [f"  {name:<40}{value / 2**20:>12,.1f}" for name, value in self.phases.items()]
        return "\n".join([*lines, f"{'at its peak':<42}{self.peak / 2**20:>12,.1f}"])


def what_helps(arguments: Sequence[str]) -> str:
    """A line for each setting that lowers the memory of a run: the options, and how much they save of a rank's peak.

    Args:
        arguments: of a ``dpr fit``.
    """
    now = plan(arguments).peak
    savings = [(options, now - plan([*arguments, *options.split()]).peak) for options in _remedies(arguments)]
    width = max(len(options) for options, _ in savings)
    lines = [f"Of {now / 2**20:,.1f} MiB that a rank takes at its peak, these would save:"]
    return "\n".join([*lines, *(f"  {options:<{width}}{saved / 2**20:>12,.1f} MiB" for options, saved in savings)])


def _remedies(arguments: Sequence[str]) -> list[str]:
    """Options that lower the memory of a run, the cheapest first; the first one changes only the speed."""
    config = parse_lightning(["fit", *arguments])
    trainer, data, policy = config["trainer"], config["data"]["init_args"], config["model"]["init_args"]["policy"]
    smaller = f"--trainer.accumulate_grad_batches {2 * trainer['accumulate_grad_batches']}"
    if "batch_size" in data:
        rows, budget = data["batch_size"], data["token_budget"] or DEFAULT_TOKEN_BUDGET
        halved = f"--data.batch_size {rows // 2}" if rows is not None else f"--data.token_budget {budget // 2}"
        smaller = "" if rows == 1 else f"{halved} {smaller}"
    remedies = [smaller] if smaller else []
    if data.get("draw_ahead") == "same":
        remedies.append("--data.draw_ahead null")
    if not policy["gradient_checkpointing"]:
        remedies.append("--model.policy.gradient_checkpointing true")
    ranks = _ranks(trainer)
    if ranks.count > 1 and ranks.kind == "ddp":
        remedies.append("--trainer.strategy.class_path dpr_lightning.strategies.Zero3Strategy")
    elif policy["lora"] is None:
        remedies.append("--model.policy.lora.rank 16")
    return remedies


def plan(arguments: Sequence[str]) -> Plan:
    """Count the memory of ``dpr fit`` with the same arguments.

    A micro-batch is counted at its largest: rows of full length, of which, where demonstrations are imitated, every
    token is learnt. Fragments that an allocator cannot use, CUDA's context and NCCL's buffers are not counted.

    Args:
        arguments: configs and options, as ``dpr fit`` takes them. No weights are read and nothing is trained. Devices
            that are not a number (``auto``) count as one; weights that are whole or in shards by their size (``auto``)
            count as whole, since the memory of the device is not known here.

    Raises:
        InputError: the module is neither SupervisedIRL nor a rollout algorithm that can be counted, a configuration is
            missing, or the model's control flow depends on the content of its tensors.
    """
    config = parse_lightning(["fit", *arguments])
    # Before there are tensors without content, which a module's own state cannot be made of.
    algorithm = None if _kind(config) in COUNTED else algorithm_to_count(config["model"])
    try:
        with FakeTensorMode(), GroupedProducts():
            return _counted(config, algorithm)
    except InputError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            "`dpr plan` cannot count for this model, whose layers do not run on tensors without content: "
            f"{first_line(error)} A short run measures it: `dpr fit` with these arguments and `--trainer.max_steps 2`."
        ) from error


def _kind(config: dict[str, Any]) -> str:
    return str(config["model"]["class_path"]).rpartition(".")[2]


def _counted(config: dict[str, Any], algorithm: RolloutAlgorithm | None) -> Plan:
    trainer, data = config["trainer"], config["data"]
    kind, options = _kind(config), config["model"]["init_args"]
    ranks = _ranks(trainer)
    spec, autocast = _precision(_policy(options["policy"]), str(trainer["precision"]), ranks)
    make = partial(_create, spec, lean=ranks.stage < 3)
    optimizer = _optimizer(options["optimizer"])
    if spec.master_weights and ranks.kind in ("one", "ddp"):
        optimizer = partial(MasterWeights, build=optimizer)
    accumulate = trainer["accumulate_grad_batches"]
    phases: dict[str, int] = {}
    stays: dict[str, int] = {}
    if kind == "SupervisedIRL":
        shape = _imitated(data["init_args"])
        step = training_memory(make, optimizer, shape, imitation_loss, accumulate=accumulate, autocast=autocast)
    elif kind == "DensePathReinforce":
        shape, phases, stays = _rollouts(spec, options, data["init_args"], ranks, accumulate)
        if trainer["accelerator"] == "cpu" and ranks.kind != "fsdp2" and ranks.stage < 3:
            phases[next(iter(phases))] += packed_bytes(_create(spec))
        loss = reinforce_loss
        if options["estimator"] == "all_actions":
            models = 1 + len(data["init_args"]["references"])
            loss = partial(
                all_actions_step_loss,
                models=models,
                rollout=_answers(data["init_args"], ranks),
                logits=_frozen_in_shards(data["init_args"], ranks),
            )
        step = training_memory(make, optimizer, shape, loss, accumulate=accumulate, autocast=autocast)
    else:
        assert algorithm is not None
        loss = partial(algorithm_loss, algorithm=algorithm)
        shape, phases, stays = _rollouts(spec, options, data["init_args"], ranks, accumulate)
        step = training_memory(make, optimizer, shape, loss, accumulate=accumulate, autocast=autocast)
    # After its hooks were removed for a rollout, DeepSpeed has to see a pass before it fetches ahead.
    hooks_removed = bool(phases) and ranks.sampling_weights != "shards" and accumulate == 1
    state, learning = _state_of_rank(step, ranks, make, fetches_ahead=not hooks_removed)
    rows = f"{counted(shape.rows, 'row')} of {counted(shape.length, 'token')}"
    planned = Plan(state | stays, phases | {f"learning from {rows}": learning})
    return _with_a_copy(planned, spec, ranks) if phases and data["init_args"]["draw_ahead"] == "same" else planned


def _with_a_copy(planned: Plan, spec: PolicySpec, ranks: Ranks) -> Plan:
    """The plan of a run in which a copy of the policy samples while the policy scores and learns."""
    copied = weight_bytes(_create(PolicySpec(**{**vars(spec), "lora": None, "checkpoint": None}), trainable=False))
    (sampling,) = (name for name in planned.phases if name.startswith("sampling"))
    # The copy is whole: weights in shards are gathered for it once, and not for each rollout.
    added = planned.phases[sampling] - _gathered_for_sampling(_create(spec), ranks)
    phases = {name: count if name == sampling else count + added for name, count in planned.phases.items()}
    return Plan(planned.stays | {"a copy of the policy that draws ahead": copied}, phases)


def _create(spec: PolicySpec, trainable: bool = True, lean: bool = True) -> nn.Module:
    return materialise(outline_policy(spec, trainable=trainable, lean=lean))


def _policy(values: Any) -> PolicySpec:
    options = dict(values)
    lora = options.pop("lora", None)
    return PolicySpec(**options, lora=LoraSpec(**lora) if lora is not None else None)


def _ranks(trainer: Any) -> Ranks:
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    count *= int(trainer["num_nodes"])
    strategy = trainer["strategy"]
    if isinstance(strategy, str):
        return Ranks("ddp" if strategy.startswith("ddp") or count > 1 else "one", count)
    name, options = strategy["class_path"].rpartition(".")[2], strategy.get("init_args") or {}
    if name in ZERO:
        options = {**(strategy.get("dict_kwargs") or {}), **options}
        bucket = int(options.get("bucket_size", 200_000_000))
        offload, weights = str(options.get("offload", "nothing")), str(options.get("sampling_weights", "auto"))
        return Ranks("zero", count, ZERO[name], bucket, offload, weights)
    if name == "Fsdp2Strategy":
        return Ranks("fsdp2", count, sampling_weights=str(options.get("sampling_weights", "auto")))
    raise InputError(f"`dpr plan` knows ddp and the strategies of dpr_lightning.strategies, not {name}.")


def _precision(spec: PolicySpec, precision: str, ranks: Ranks) -> tuple[PolicySpec, torch.dtype | None]:
    """The policy with its dtype, and the dtype of autocast: DeepSpeed converts the weights, `mixed` does not.

    float16 counts as bfloat16, which has the same size.
    """
    if not precision.startswith(("bf16", "16")):
        return spec, None
    if ranks.kind == "zero" or precision.endswith("true"):
        return PolicySpec(**{**vars(spec), "dtype": "bfloat16"}), None
    return spec, torch.bfloat16


def _optimizer(values: Any) -> Callable[[Any], torch.optim.Optimizer]:
    if callable(values):
        create: Callable[[Any], torch.optim.Optimizer] = values
        return create
    module, _, name = values["class_path"].rpartition(".")
    if name == "DeepSpeedCPUAdam":
        return partial(torch.optim.AdamW, lr=1e-5)  # the same two moments
    return partial(getattr(importlib.import_module(module), name), **dict(values["init_args"]))


def _imitated(data: Any) -> Shape:
    length = int(data["max_length"] or 1024)
    if data["batch_size"] is not None:
        return Shape(int(data["batch_size"]), length, length - 1)
    budget = int(data["token_budget"] or DEFAULT_TOKEN_BUDGET)
    return Shape(max(1, budget // length), length, length - 1)


def _rollouts(
    spec: PolicySpec, options: Any, data: Any, ranks: Ranks, accumulate: int
) -> tuple[Shape, dict[str, int], dict[str, int]]:
    """The micro-batch of a rollout algorithm, and bytes of its phases before learning and of its frozen models."""
    sampling = SamplingOptions(**dict(data["sampling"] or {}))
    prompt, answer = int(data["max_prompt_length"]), sampling.max_new_tokens
    answers = _answers(data, ranks)
    samples = int(data["samples_per_prompt"])
    # Only the model's own forward pass reads weights in shards.
    whole = ranks.kind != "fsdp2" and ranks.stage < 3
    micro = _part_of_rollout(math.ceil(answers / accumulate), prompt, answer, samples if whole else 1, answers)
    models, every = 1 + len(data["references"]), options.get("estimator") == "all_actions"
    frozen = PolicySpec(**{**vars(spec), "dtype": data["dtype"], "lora": None, "checkpoint": None})
    make = partial(_create, frozen, trainable=False)
    in_shards, outline = _frozen_in_shards(data, ranks), outline_policy(frozen, trainable=False)
    states = bare_head(outline) is not None and not in_shards
    vocabulary: int = outline.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    budget = int(data["token_budget"] or token_budget_for(vocabulary, states))
    within_budget = max(1, min(answers, budget // (prompt + answer)))
    scored_rows = micro.rows if every and in_shards else within_budget
    scored = _part_of_rollout(scored_rows, prompt, answer, 1 if in_shards else samples, answers)
    at_once = min(sampling.batch_size, answers)
    together = _gathered_for_sampling(_create(spec), ranks)
    scoring = together + scoring_memory(make, scored, models, whole=every, logits=in_shards)
    if every and not in_shards and answers > scored.rows:
        scoring += models * answers * answer * _state_bytes(make())
    shares = whole and samples > 1 and is_known_decoder(outline)
    prompt_rows = max(1, at_once // samples) if shares else None
    phases = {
        f"sampling {at_once} answers at once": together + sampling_memory(make, at_once, prompt, sampling, prompt_rows),
        f"scoring by {models} frozen models": scoring,
    }
    shared = spec.lora is not None and all(
        is_adapter(folder) or not Path(folder).exists() for folder in (data["sft"], *data["references"])
    )
    if shared:
        elements = sum(weight.numel() for name, weight in _create(spec).named_parameters() if "lora_" in name)
        return micro, phases, {f"{models} frozen adapters on its base": 4 * elements * models}
    one = weight_bytes(make())
    if in_shards:
        phases[f"scoring by {models} frozen models"] += _gathered_in_a_pass(make())
        return micro, phases, {f"{models} frozen models, in shards": one * models // ranks.count}
    return micro, phases, {f"{models} frozen models": one * models}


def _part_of_rollout(rows: int, prompt: int, answer: int, samples: int, whole: int) -> Shape:
    """The shape of ``rows`` of the ``whole`` rows of a rollout, ``samples`` of which answer one prompt.

    A part that is not the whole may cut two groups of one prompt.
    """
    rows = max(1, rows)
    prompts = min(rows, math.ceil(rows / samples) + (rows < whole))
    return Shape(rows, prompt + answer, answer, prompts if samples > 1 else None)


def _answers(data: Any, ranks: Ranks) -> int:
    """Number of rows of a rollout on one rank."""
    return max(1, int(data["prompts_per_rollout"]) // ranks.count) * int(data["samples_per_prompt"])


def _frozen_in_shards(data: Any, ranks: Ranks) -> bool:
    """Whether every rank has only a shard of the frozen models."""
    return data["frozen_weights"] == "shards" and ranks.count > 1


def _state_bytes(model: Any) -> int:
    """Bytes of the hidden state that a model's head gets for one token."""
    weight = model.get_output_embeddings().weight
    return int(weight.shape[1] * weight.element_size())


def _gathered_for_sampling(policy: nn.Module, ranks: Ranks) -> int:
    """Bytes of a policy in shards that are gathered for a rollout: all weights, or a few layers at a time."""
    if ranks.count == 1 or not (ranks.kind == "fsdp2" or ranks.stage == 3):
        return 0
    return _gathered_in_a_pass(policy) if ranks.sampling_weights == "shards" else weight_bytes(policy)


def _gathered_in_a_pass(model: nn.Module) -> int:
    """Bytes that a model in shards gathers in a forward pass: a layer, the next one, and the weights outside layers."""
    layer, rest = _gathered_by_fsdp(model)
    return rest + 2 * layer


def _state_of_rank(
    step: StepMemory, ranks: Ranks, make: Callable[[], nn.Module], *, fetches_ahead: bool
) -> tuple[dict[str, int], int]:
    """Bytes of weights and optimizer that stay on a rank, and bytes that learning adds, gradients included."""
    count, weights, optimizer, gradients = ranks.count, step.weights, step.optimizer, step.gradients_at_peak
    if ranks.kind == "fsdp2":
        layer, rest = _gathered_by_fsdp(make())
        # One layer in use and one fetched ahead; in the backward pass also the gradients of one, once more unsharded.
        backward = step.working + gradients // count + 2 * layer
        learning = rest + 2 * layer + max(step.most_working, backward)
        return {"weights": weights // count, "optimizer": optimizer // count}, learning
    if ranks.kind == "zero":
        return _zero(step, ranks, make, fetches_ahead)
    stays = {"weights": weights, "optimizer": optimizer}
    if ranks.kind == "ddp" and count > 1:
        stays["buckets of gradients to exchange"] = step.gradients
    return stays, step.working + gradients


def _zero(
    step: StepMemory, ranks: Ranks, make: Callable[[], nn.Module], fetches_ahead: bool
) -> tuple[dict[str, int], int]:
    """The same under DeepSpeed, where the optimizer steps a float32 copy of each rank's share of the weights."""
    count, weights, trained = ranks.count, step.weights, step.trainable
    elements = sum(weight.numel() for weight in make().parameters() if weight.requires_grad)
    element_bytes = trained // max(1, elements)
    share = 4 * elements // count
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


def _gathered_by_fsdp(model: nn.Module) -> tuple[int, int]:
    """Bytes of the largest layer, and of the weights outside layers."""
    names = layer_names(model)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    layer_bytes = [sum(weight.numel() * weight.element_size() for weight in layer.parameters()) for layer in layers]
    return max(layer_bytes, default=0), weight_bytes(model) - sum(layer_bytes)
