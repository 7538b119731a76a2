"""Verifier heads with random weights, to score with in tests."""

from pathlib import Path
from typing import Any, cast

import torch

from dpr_lightning.policies import PolicySpec, build_verifier_head


def write_head(source: str, folder: Path, *, weight: float = 1.0, seed: int = 0) -> str:
    """Write a head on the trunk of a policy into ``folder``: weights of this standard deviation."""
    model, tokenizer = build_verifier_head(PolicySpec(source=source))
    with torch.no_grad():
        head = cast(Any, model).score.weight
        head.copy_(weight * torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)))
    cast(Any, model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
