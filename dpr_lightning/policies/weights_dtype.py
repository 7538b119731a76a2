"""``dtype: auto``: weights in the type in which they are saved, where this machine computes in it."""

import logging
from functools import cache
from typing import Any

import torch

from dpr_lightning.engine import multiplies_bfloat16
from dpr_lightning.policies.adapters import resolve_adapter
from dpr_lightning.policies.architectures import read_config
from dpr_lightning.policies.policy_spec import AUTO, DTYPES, Dtype, PolicySpec

log = logging.getLogger(__name__)


def weights_dtype(spec: PolicySpec, config: Any) -> torch.dtype:
    """The type of a full model's weights; called before they are created or read, and logs once what ``auto`` is.

    Args:
        spec: of the full model, without adapters.
        config: its configuration in transformers.
    """
    if spec.dtype != AUTO:
        return DTYPES[spec.dtype]
    saved = saved_dtype(config)
    dtype, reason = automatic_dtype(saved)
    _log_choice(dtype, reason, logging.INFO if saved in (dtype, None) else logging.WARNING)
    return DTYPES[dtype]


def saved_dtype(config: Any) -> Dtype | None:
    """The type of saved weights by a configuration of transformers; None where it does not name one of ours."""
    saved = config.dtype or config.get_text_config().dtype
    return next((name for name, value in DTYPES.items() if saved in (name, value)), None)


def dtype_of(folder: str, dtype: Dtype) -> Dtype:
    """The type that the weights of a policy have here; called where what depends on it is identified.

    Args:
        folder: of the policy, or its hub id.
        dtype: as configured.
    """
    if dtype != AUTO:
        return dtype
    base, _ = resolve_adapter(PolicySpec(source=folder))
    return automatic_dtype(saved_dtype(read_config(base)))[0]


def automatic_dtype(saved: Dtype | None, *, on_gpu: bool | None = None) -> tuple[Dtype, str]:
    """What ``auto`` is, and the reason in a few words.

    That of the saved weights, except that a CPU without instructions for bfloat16 takes float32, and that bfloat16
    replaces float16, whose range is too small for gradients.

    Args:
        saved: from :func:`saved_dtype`.
        on_gpu: whether an accelerator computes; None: where this machine has one.
    """
    if saved is None:
        return "float32", "no other type is saved with the weights"
    if saved == "float32":
        return saved, "as the weights are saved"
    if torch.accelerator.is_available() if on_gpu is None else on_gpu:
        if saved == "float16":
            return "bfloat16", "the weights are float16, which has too small a range for gradients"
        return saved, "as the weights are saved"
    if multiplies_bfloat16():
        return "bfloat16", "this CPU multiplies bfloat16"
    return "float32", f"the weights are saved in {saved}, for which this CPU has no instructions"


@cache
def _log_choice(dtype: Dtype, reason: str, level: int) -> None:
    log.log(level, "`dtype: auto` is %s here: %s.", dtype, reason)
