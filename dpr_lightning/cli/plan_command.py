"""``dpr plan``: the memory that a config takes on each rank, counted without a GPU."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from dpr_lightning.cli.plan_ranks import Ranks, step_of_rank
from dpr_lightning.cli.plan_run import CountedRun, Precision
from dpr_lightning.data import PolicyDataModule
from dpr_lightning.data.demonstrations import DEFAULT_TOKEN_BUDGET
from dpr_lightning.engine import weight_bytes
from dpr_lightning.engine.decoding import packed_bytes
from dpr_lightning.errors import InputError, counted, first_line
from dpr_lightning.lightning_cli.dpr_cli import parse_lightning
from dpr_lightning.modules.base import PolicyModule
from dpr_lightning.policies import AUTO, PolicySpec
from dpr_lightning.policies.adapters import resolve_adapter
from dpr_lightning.policies.outline import config_of, outline_policy
from dpr_lightning.policies.weights_dtype import automatic_dtype, saved_dtype

WHAT_HELPS = "--what_helps"


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
    savings = []
    for options in _remedies(arguments):
        with suppress(InputError):  # a module may refuse it, as a verifier head does adapters
            savings.append((options, now - plan([*arguments, *options.split()]).peak))
    width = max((len(options) for options, _ in savings), default=0)
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
    ranks = Ranks.of(trainer)
    if ranks.count > 1 and ranks.kind == "ddp":
        remedies.append("--trainer.strategy.class_path dpr_lightning.strategies.Zero3Strategy")
    elif policy["lora"] is None:
        remedies.append("--model.policy.lora.rank 16")
    return remedies


def plan(arguments: Sequence[str]) -> Plan:
    """Count the memory of ``dpr fit`` with the same arguments.

    Two steps of the module run in Lightning's loop, and the passes that sample and score before them, on tensors
    without content. A micro-batch is counted at its largest: rows of full length, of which, where demonstrations are
    imitated, every token is learnt. Fragments that an allocator cannot use, CUDA's context and NCCL's buffers are not
    counted.

    Args:
        arguments: configs and options, as ``dpr fit`` takes them. No weights are read and nothing is trained. Devices
            that are not a number (``auto``) count as one, and as a GPU unless ``accelerator`` is cpu; weights that are
            whole or in shards by their size (``auto``) count as whole, since the size of the device is not known here.

    Raises:
        InputError: module or data cannot be counted, a configuration is missing, or what runs depends on numbers.
    """
    config = parse_lightning(["fit", *arguments])
    trainer, ranks = config["trainer"], Ranks.of(config["trainer"])
    module, data = _instances(config)
    module.policy_spec = _with_dtype(module.policy_spec, on_gpu=trainer["accelerator"] != "cpu")
    module.policy_spec, precision = _precision(module.policy_spec, str(trainer["precision"]), ranks)
    run = CountedRun(module, data, ranks)
    try:
        run.run(precision, int(trainer["accumulate_grad_batches"]), trainer["gradient_clip_val"])
    except NotImplementedError as error:
        raise InputError(f"`dpr plan` cannot count for this config: {first_line(error)} {_MEASURE}") from error
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            "`dpr plan` cannot count for this model or module, which does not run on tensors without content: "
            f"{first_line(error)} {_MEASURE}"
        ) from error
    return _plan_of(run, ranks, config)


_MEASURE = "A short run measures it: `dpr fit` with these arguments and `--trainer.max_steps 2`."


def _plan_of(run: CountedRun, ranks: Ranks, config: dict[str, Any]) -> Plan:
    trainer, policy = config["trainer"], run.policy
    phases, whole = dict(run.phases), not ranks.shard_weights
    sampling = next((name for name in phases if name.startswith("sampling")), None)
    if sampling is not None and trainer["accelerator"] == "cpu" and whole:
        phases[sampling] += packed_bytes(policy)
    # After its hooks were removed for a rollout, DeepSpeed has to see a pass before it fetches ahead.
    hooks_removed = run.gathers_policy and trainer["accumulate_grad_batches"] == 1
    stays, learning = step_of_rank(run.step, ranks, policy, fetches_ahead=not hooks_removed)
    rows, length = run.largest
    planned = Plan(
        stays | run.stays, phases | {f"learning from {counted(rows, 'row')} of {counted(length, 'token')}": learning}
    )
    ahead = (config["data"].get("init_args") or {}).get("draw_ahead") == "same"
    return _with_a_copy(planned, run, ranks) if ahead else planned


def _with_a_copy(planned: Plan, run: CountedRun, ranks: Ranks) -> Plan:
    """The plan of a run in which a copy of the policy samples while the policy scores and learns."""
    copied = weight_bytes(outline_policy(replace(run.module.policy_spec, lora=None, checkpoint=None), trainable=False))
    (sampling,) = (name for name in planned.phases if name.startswith("sampling"))
    # The copy is whole: weights in shards are gathered for it once, and not for each rollout.
    added = planned.phases[sampling] - ranks.gathered_for_inference(run.policy)
    phases = {name: count if name == sampling else count + added for name, count in planned.phases.items()}
    return Plan(planned.stays | {"a copy of the policy that draws ahead": copied}, phases)


def _instances(config: dict[str, Any]) -> tuple[PolicyModule, PolicyDataModule]:
    """The module and the DataModule of a config.

    Raises:
        InputError: they are none of this package's kinds.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    optimizer = (config["model"].get("init_args") or {}).get("optimizer")
    if isinstance(optimizer, dict) and optimizer["class_path"].endswith(".DeepSpeedCPUAdam"):
        # It has the same two moments, and to create it compiles it.
        config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}}
    parts = parser.instantiate_classes(parser.parse_object({name: config[name] for name in ("model", "data")}))
    for part, kind in ((parts.model, PolicyModule), (parts.data, PolicyDataModule)):
        if not isinstance(part, kind):
            raise InputError(
                f"`dpr plan` counts for a {kind.__name__}, and {type(part).__name__} is not derived from it. {_MEASURE}"
            )
    return parts.model, parts.data


def _with_dtype(spec: PolicySpec, *, on_gpu: bool) -> PolicySpec:
    """The policy with the dtype that ``auto`` is on a GPU or on this CPU; called before it is built."""
    if spec.dtype != AUTO:
        return spec
    dtype, _ = automatic_dtype(saved_dtype(config_of(resolve_adapter(spec)[0])), on_gpu=on_gpu)
    return replace(spec, dtype=dtype)


def _precision(spec: PolicySpec, precision: str, ranks: Ranks) -> tuple[PolicySpec, Precision]:
    """The policy with its dtype, and the trainer's precision: DeepSpeed converts the weights, `mixed` does not.

    float16 counts as bfloat16, which has the same size. DeepSpeed and FSDP2 take no float32 copies of this package.
    """
    copies = spec.master_weights and ranks.kind in ("one", "ddp")
    spec = replace(spec, master_weights=copies)
    if not precision.startswith(("bf16", "16")):
        return spec, "32-true"
    if ranks.kind == "zero" or precision.endswith("true"):
        return replace(spec, dtype="bfloat16"), "32-true"
    return spec, "bf16-mixed"
