"""A policy without weights: shapes and dtypes alone, from which memory and operations are counted."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from dpr_lightning.engine.recompute import recompute_activations
from dpr_lightning.errors import InputError, first_line
from dpr_lightning.policies.adapters import add_adapter, resolve_adapter
from dpr_lightning.policies.architectures import auto_class, freeze_parts_without_text, read_config
from dpr_lightning.policies.attention_choice import attention_for
from dpr_lightning.policies.build import architecture_config
from dpr_lightning.policies.policy_spec import PolicySpec
from dpr_lightning.policies.tokenizers import load_tokenizer
from dpr_lightning.policies.wrapped_models import recompute_layers


def outline_policy(spec: PolicySpec, *, trainable: bool = True, lean: bool = True) -> nn.Module:
    """The model of ``spec`` on PyTorch's meta device; only ``config.json`` of its folder is read.

    Args:
        spec: of the policy.
        trainable: False leaves out adapters and freezes all weights.
        lean: whether its layers may save fewer activations; they do not with weights in DeepSpeed's shards.

    Raises:
        InputError: there is no configuration.
    """
    base, _ = resolve_adapter(spec)
    try:
        if base.architecture is not None:
            config = architecture_config(base, load_tokenizer(base.tokenizer_source))
        else:
            config = read_config(base)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The configuration of {base.source!r} cannot be read: {first_line(error)} Name a folder with a "
            "config.json or a hub id as `model.policy.source`; the weights need not be there."
        ) from error
    # Some architectures compute constants while they are built, which is not possible on tensors without content.
    with _disable_current_modes(), torch.device("meta"):
        make = auto_class(config, str(base.source))
        attention = attention_for(spec, make, config, trainable=trainable)
        options = {"attn_implementation": attention, "trust_remote_code": base.trust_remote_code}
        model: nn.Module = make.from_config(config, dtype=base.torch_dtype, **options)
        if trainable:
            freeze_parts_without_text(model)
        if spec.lora is not None and trainable:
            model = add_adapter(model, spec.lora)
    if lean:
        recompute_activations(model)
    if spec.gradient_checkpointing and trainable:
        recompute_layers(model)
    return model.train() if trainable else model.eval().requires_grad_(False)


class GroupedProducts(TorchFunctionMode):
    """While active, grouped matrix products (of all experts) work on tensors without content, of any type.

    PyTorch's operation supports only bfloat16 there. transformers has one that computes the same, with the same shapes
    and gradients.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of PyTorch."""
        if func is torch._grouped_mm:
            return torch.ops.transformers.grouped_mm_fallback(*args[:2], offs=kwargs["offs"])
        return func(*args, **(kwargs or {}))


def materialise(model: nn.Module) -> nn.Module:
    """Allocate every weight of an outline, tied ones once; the values are undefined.

    Within a :class:`torch._subclasses.FakeTensorMode` no memory is used, and everything can be counted.
    """
    created: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is None:
                    continue
                if id(value) not in created:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    created[id(value)] = (value, nn.Parameter(empty, value.requires_grad) if trained else empty)
                tensors[name] = created[id(value)][1]
    return model
