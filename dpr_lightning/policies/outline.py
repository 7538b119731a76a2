"""A policy without weights: shapes and dtypes alone, from which memory and operations are counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForSequenceClassification

from dpr_lightning.engine.recompute import recompute_activations
from dpr_lightning.errors import InputError, first_line
from dpr_lightning.policies.adapters import add_adapter, resolve_adapter
from dpr_lightning.policies.architectures import auto_class, freeze_parts_without_text, read_config
from dpr_lightning.policies.attention_choice import attention_for
from dpr_lightning.policies.build import architecture_config
from dpr_lightning.policies.mistaken_paths import not_a_policy
from dpr_lightning.policies.policy_spec import PolicySpec
from dpr_lightning.policies.tokenizers import load_tokenizer
from dpr_lightning.policies.verifier_model import full_model_of
from dpr_lightning.policies.weights_dtype import weights_dtype
from dpr_lightning.policies.wrapped_models import recompute_layers


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Inside, tensors are created on PyTorch's meta device, whatever mode is active outside."""
    with _disable_current_modes(), torch.device("meta"):
        yield


def outline_policy(spec: PolicySpec, *, trainable: bool = True) -> nn.Module:
    """The model of ``spec`` on PyTorch's meta device; only ``config.json`` of its folder is read.

    Args:
        spec: of the policy.
        trainable: False leaves out adapters and freezes all weights.

    Raises:
        InputError: there is no configuration.
    """
    # Some architectures compute constants while they are built, which is not possible on tensors without content.
    with on_meta_device():
        model = _from_config(spec, lambda config: auto_class(config, str(spec.source)), trainable=trainable)
        if trainable:
            freeze_parts_without_text(model)
        if spec.lora is not None and trainable:
            model = add_adapter(model, spec.lora)
    recompute_activations(model)
    if spec.gradient_checkpointing and trainable:
        recompute_layers(model)
    return model.train() if trainable else model.eval().requires_grad_(False)


def outline_verifier_head(spec: PolicySpec) -> nn.Module:
    """The trunk of ``spec`` with a head of one output, as :func:`outline_policy`.

    Raises:
        InputError: there is no configuration, or none of a full model whose architecture has such a head.
    """
    full_model_of(spec)
    try:
        with on_meta_device():
            model = _from_config(spec, lambda _: AutoModelForSequenceClassification, num_labels=1)
    except (ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{spec.source!r} has no model with a head for sequences: {first_line(error)}") from error
    if spec.gradient_checkpointing:
        recompute_layers(model)
    return model.train()


def _from_config(
    spec: PolicySpec, choose: Callable[[Any], Any], *, trainable: bool = True, **changes: Any
) -> nn.Module:
    base, _ = resolve_adapter(spec)
    config = config_of(base)
    for name, value in changes.items():
        setattr(config, name, value)
    make = choose(config)
    attention = attention_for(spec, make, config, trainable=trainable)
    options = {"attn_implementation": attention, "trust_remote_code": base.trust_remote_code}
    model: nn.Module = make.from_config(config, dtype=weights_dtype(base, config), **options)
    return model


def config_of(spec: PolicySpec) -> Any:
    """The configuration of a full model, in transformers.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if spec.architecture is not None:
            return architecture_config(spec, load_tokenizer(spec.tokenizer_source))
        return read_config(spec)
    except (OSError, ValueError) as error:
        if problem := spec.source and not_a_policy(spec.source):
            raise InputError(problem) from error
        raise InputError(
            f"The configuration of {spec.source!r} cannot be read: {first_line(error)} Name a folder with a "
            "config.json or a hub id as `model.policy.source` (`--model` of `dpr sft`); the weights need not be there."
        ) from error


def materialise(model: nn.Module) -> nn.Module:
    """Allocate what a model has on the meta device, tied weights once; numbers are undefined and integers 0.

    Inside :func:`dpr_lightning.policies.without_content.without_content` weights use no memory.
    """
    created: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is None or value.device.type != "meta":
                    continue
                if id(value) not in created:
                    new = torch.empty if value.is_floating_point() else torch.zeros
                    weight = new(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    created[id(value)] = (value, nn.Parameter(weight, value.requires_grad) if trained else weight)
                tensors[name] = created[id(value)][1]
    return model
