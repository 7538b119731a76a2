"""The layers of a model that get adapters: refuses names that match none, and logs those that match."""

import difflib
import logging
from collections import Counter
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from dpr_lightning.errors import InputError, counted
from dpr_lightning.model_options import ModelOptions
from dpr_lightning.partitioned_weights import whole_numel
from dpr_lightning.policies.policy_spec import LoraSpec
from dpr_lightning.policies.wrapped_models import transformers_model

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)
ALL_LINEAR = "all-linear"


def check_targets(model: nn.Module, spec: LoraSpec) -> None:
    """Refuse names in ``spec`` that match no layer and no weight of ``model``.

    Raises:
        InputError: names the option, and similar names of the model.
    """
    modules = [name for name, _ in model.named_modules() if name]
    layers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"
    }
    if isinstance(spec.target_modules, str):
        if spec.target_modules in modules or spec.target_modules in layers:
            raise InputError(
                "A text as `model.policy.lora.target_modules` is a pattern for whole names of modules, and "
                f"{spec.target_modules!r} is a part of one. Write it as a list: [{spec.target_modules}]."
            )
    else:
        _check_names("target_modules", spec.target_modules, modules, sorted(layers))
    if spec.modules_to_save:
        _check_names("modules_to_save", spec.modules_to_save, modules, sorted(layers))
    if spec.target_parameters:
        weights = [name for name, _ in model.named_parameters()]
        _check_names("target_parameters", spec.target_parameters, weights, fused_experts(model) or weights)
        if spec.dropout:
            raise InputError(
                "Adapters on `model.policy.lora.target_parameters` have no dropout: set `model.policy.lora.dropout: 0`."
            )


def _check_names(option: str, names: list[str], known: list[str], examples: list[str]) -> None:
    for name in names:
        if any(each == name or each.endswith(f".{name}") for each in known):
            continue
        near = difflib.get_close_matches(name, examples, n=3, cutoff=0.6)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(examples[:12])}."
        raise InputError(f"`model.policy.lora.{option}`: the model has nothing that is called {name!r}. {hint}")


def fused_experts(model: nn.Module) -> list[str]:
    """Names of the weights with all experts of a layer in one tensor, which adapters on layers do not include."""
    experts = ModelOptions.of_text(transformers_model(model).config).experts
    names = (
        name for name, weight in model.named_parameters() if experts and weight.dim() == 3 and len(weight) == experts
    )
    return list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))


def tell_targets(adapted: "PeftModel", spec: LoraSpec, fused: list[str]) -> None:
    """Log which layers have adapters, by name and number, and that fused experts have none.

    Args:
        adapted: peft's model.
        spec: of the adapter.
        fused: of the model without adapters, by :func:`fused_experts`.
    """
    names = [*adapted.targeted_module_names, *adapted.targeted_parameter_names]
    count = Counter(name.removesuffix(".weight").rpartition(".")[2] for name in names)
    weights = sum(whole_numel(weight) for weight in adapted.parameters() if weight.requires_grad)
    listed = ", ".join(f"{name} {number}" for name, number in count.most_common())
    layers = counted(len(names), "layer")
    rank_zero_info(f"LoRA of rank {spec.rank} on {layers} ({listed}): {weights:,} weights are trained.")
    if fused and not spec.target_parameters and spec.target_modules == ALL_LINEAR:
        log.warning(
            "The experts of this model are fused weights (%s), which `all-linear` does not reach: they get no adapter. "
            "To train them too, set `model.policy.lora.target_parameters: [%s]`.",
            ", ".join(name.rpartition(".")[2] for name in fused),
            ", ".join(fused),
        )
