"""Weights moved on in the direction that fine-tuning took them: a control that needs no training."""

import torch
from torch import nn

from dpr_lightning.errors import InputError, counted


@torch.no_grad()
def extrapolate_weights(policy: nn.Module, reference: nn.Module, strength: float) -> nn.Module:
    """θ ← θ + w·(θ − θ_ref), in place, in float32.

    Args:
        policy: what to move, with its adapters merged.
        reference: an earlier checkpoint of the same run, likewise; stays as it is.
        strength: w; 0 changes nothing, −1 gives the reference.

    Raises:
        InputError: the two are not of one architecture.
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
