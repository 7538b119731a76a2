"""Weights extrapolated in the direction of fine-tuning: a baseline that needs no training."""

import torch
from torch import nn

from dpr_lightning.errors import InputError, counted


@torch.no_grad()
def extrapolate_weights(policy: nn.Module, reference: nn.Module, strength: float) -> nn.Module:
    """θ ← θ + w·(θ − θ_ref), in place, in float32.

    Args:
        policy: changed in place; its adapters are merged.
        reference: an earlier checkpoint of the same run, likewise merged; not changed.
        strength: w; 0 changes nothing, −1 results in the reference.

    Raises:
        InputError: the two have different architectures.
    """
    weights, earlier = dict(policy.named_parameters()), dict(reference.named_parameters())
    shapes = {name: weight.shape for name, weight in weights.items()}
    if shapes != {name: weight.shape for name, weight in earlier.items()}:
        differing = sorted(name for name in {*weights, *earlier} if shapes.get(name) != _shape(earlier.get(name)))
        raise InputError(
            f"The policy and the reference differ in {counted(len(differing), 'weight')} or their shapes (first: "
            f"{differing[0]}). Extrapolation takes two checkpoints of one run."
        )
    for name, weight in weights.items():
        before = earlier[name].to(weight.device).float()
        weight.copy_(weight.float() + strength * (weight.float() - before))
    return policy


def _shape(weight: torch.Tensor | None) -> torch.Size | None:
    return None if weight is None else weight.shape
