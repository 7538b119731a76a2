"""Layers of known decoders that save less for the backward pass, and recompute the rest.

A training step of eight layers takes 0.88 of the memory that it takes without this (`python -m benchmarks.ablation`).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, rms_norm, silu

from dpr_lightning.engine.half_precision import attended, autocasts
from dpr_lightning.engine.known_decoders import inside_of_adapters, is_known_decoder, is_silu
from dpr_lightning.engine.weight_shards import is_sharded


def recompute_activations(model: nn.Module) -> None:
    """Replace the layers of a known decoder by ones that save only their inputs for the backward pass.

    Norms save their input, not its normalised copy (nor, in half precision, a float32 copy); gated linear units save
    the outputs of their two projections, not the activation and the product. Values and gradients are those of the
    library's layers, except that the gradients of norms in half precision are computed in float32 throughout. Without
    gradients, norms of float32 are one call, and a unit's product overwrites its gate. Under autocast, with sharded
    weights and with adapters, the library's layers are called.

    Source: the trade of memory for recomputation of single operations is that of Liger kernels (Hsu et al. 2024,
    arXiv:2410.10989); this one is ours, in plain PyTorch.
    """
    if not is_known_decoder(model):
        return
    for layer in inside_of_adapters(model).model.layers:
        for part, forward in ((layer.mlp, _gated), (layer.self_attn, attended)):
            kind: Any = type(part)
            part.__class__ = _with_forward(kind, forward)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            kind = type(module)
            module.__class__ = _with_forward(kind, _normed)


@cache
def _with_forward(kind: Any, forward: Any) -> Any:
    """A subclass of the same name; a function stored in each module would be a reference cycle with its weights."""

    def compute(module: Any, *arguments: Any, **named: Any) -> Any:
        return forward(module, kind.forward, *arguments, **named)

    return type(kind.__name__, (kind,), {"forward": compute, "__module__": kind.__module__})


def _normed(module: Any, library_forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    if not autocasts():
        if not torch.is_grad_enabled() and hidden.dtype == torch.float32:
            return rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)
        if torch.is_grad_enabled() and hidden.requires_grad:
            norm: Any = _Norm.apply
            result: Tensor = norm(hidden, module.weight, module.variance_epsilon)
            return result
    return library_forward(module, hidden)


def _gated(module: Any, library_forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    if not autocasts() and is_silu(module.act_fn):
        if not torch.is_grad_enabled() and _is_plain(module.gate_proj):
            product = silu(module.gate_proj(hidden), inplace=True).mul_(module.up_proj(hidden))
            result: Tensor = module.down_proj(product)
            return result
        down = module.down_proj
        if torch.is_grad_enabled() and _is_plain(down) and not is_sharded(down):
            gate, up = module.gate_proj(hidden), module.up_proj(hidden)
            gated: Callable[..., Tensor] = _GatedLinear.apply
            return gated(gate, up, down.weight, down.bias)
    return library_forward(module, hidden)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a plain linear one without hooks, so that its output may be overwritten."""
    return type(layer) is nn.Linear and not layer._forward_pre_hooks and not layer._forward_hooks


class _Norm(torch.autograd.Function):
    """y = w ⊙ n, n = x/s, s = √(mean(x²) + ε):  ∂L/∂x = (h − n·mean(h ⊙ n))/s, h = w ⊙ ∂L/∂y;  ∂L/∂w = Σ ∂L/∂y ⊙ n."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = hidden.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight, scale)
        return weight * _times(wide, scale, hidden).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, scale = ctx.saved_tensors
        normed = _times(hidden.to(torch.float32), scale, hidden)
        wide, weight_ = gradient.to(torch.float32), weight.to(torch.float32)
        product = wide * normed
        weight_grad = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        # Not as a product with the weights: its sums would depend on how many rows there are.
        mean = product.mul_(weight_).mean(-1, keepdim=True)
        inner = _times(wide, weight_, gradient).addcmul_(normed, mean, value=-1)
        return inner.mul_(scale).to(hidden.dtype), weight_grad, None


def _times(wide: Tensor, factor: Tensor, original: Tensor) -> Tensor:
    """``wide · factor``, in place unless ``wide`` is the ``original`` tensor."""
    return wide * factor if wide is original else wide.mul_(factor)


class _GatedLinear(torch.autograd.Function):
    """(silu(g) ⊙ u)·Wᵀ + b, which saves g and u; gradients are those of the three operations."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(silu(gate).mul_(up), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        flat, inner, active = gradient.flatten(0, -2), gradient @ weight, silu(gate)
        product = active * up
        up_grad = active.mul_(inner)
        gate_grad = torch.ops.aten.silu_backward(inner.mul_(up), gate)
        weight_grad = flat.T @ product.flatten(0, -2) if ctx.needs_input_grad[2] else None
        return gate_grad, up_grad, weight_grad, flat.sum(0) if ctx.needs_input_grad[3] else None
