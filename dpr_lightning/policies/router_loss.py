"""The load-balancing loss of mixtures of experts, as transformers computes it, added to any training loss."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpr_lightning.engine import inside_of_adapters
from dpr_lightning.model_options import ROUTER_LOSS, ModelOptions


def computes_router_loss(model: nn.Module) -> bool:
    """Whether transformers computes a load-balancing loss for this architecture."""
    single = inside_of_adapters(model)
    return (
        ModelOptions.of_text(single.config).is_mixture and ROUTER_LOSS in inspect.signature(single.forward).parameters
    )


def configured_coefficient(model: nn.Module) -> float:
    """The coefficient of the loss where the model's configuration enables it by ``output_router_logits``, else 0."""
    return ModelOptions.of_text(inside_of_adapters(model).config).router_coefficient


@contextmanager
def router_losses(model: nn.Module, mask: Tensor) -> Iterator[list[Tensor]]:
    """While the block runs, each forward pass appends its load-balancing loss, with a gradient, to the list.

    Args:
        model: for which :func:`computes_router_loss` is true, possibly wrapped by peft.
        mask: [B, L] True where the policy acted: tokens after a row's last action are padding, which is not counted.
    """
    single = inside_of_adapters(model)
    losses: list[Tensor] = []
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    real = columns <= (mask * columns).amax(1, keepdim=True)
    padded = not bool(real.all())

    def request(_module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        options[ROUTER_LOSS] = True
        rows = options["input_ids"].shape
        if padded and rows == mask.shape and options.get("attention_mask") is None:
            options["attention_mask"] = real.long()
        return arguments, options

    def collect(_module: nn.Module, _arguments: Any, output: Any) -> None:
        losses.append(output.aux_loss)

    handles = [
        single.register_forward_pre_hook(request, with_kwargs=True),
        single.register_forward_hook(collect),
    ]
    try:
        yield losses
    finally:
        for handle in handles:
            handle.remove()
