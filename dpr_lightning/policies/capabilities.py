"""Properties of the model in training, determined by running it before the first step."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpr_lightning.engine import evaluating, has_adapters, is_sharded, model_device, positions_of
from dpr_lightning.errors import InputError, first_line
from dpr_lightning.model_options import ModelOptions
from dpr_lightning.policies.architectures import not_causal
from dpr_lightning.policies.wrapped_models import transformers_model

log = logging.getLogger(__name__)
_TOKENS = 8


@dataclass(frozen=True)
class Capabilities:
    """Properties of a model.

    ``causal``: whether later tokens do not change earlier outputs, None where the weights are in shards or the model
    cannot run on its current device; ``attention``: transformers' name of its implementation; ``positions``: tokens of
    the longest row that it is configured for, None without a limit; ``experts``: routed experts of a layer, 0 without.
    """

    causal: bool | None
    attention: str
    positions: int | None
    experts: int


def capabilities_of(model: nn.Module, name: str) -> Capabilities:
    """Run a few tokens through ``model`` and read the rest from its configuration.

    Args:
        model: a causal language model of transformers, possibly wrapped by peft.
        name: of its folder, for messages.

    Raises:
        InputError: a later token changes the logits of earlier ones, or the model cannot run on token ids alone.
    """
    config = transformers_model(model).config
    causal = None if _is_elsewhere(model) else _is_causal(model, name)
    if causal is False:
        raise InputError(not_causal(name, config))
    return Capabilities(
        causal, str(config._attn_implementation), positions_of(model), ModelOptions.of_text(config).experts
    )


def _is_elsewhere(model: nn.Module) -> bool:
    return is_sharded(model) or any(weight.is_meta for weight in model.parameters())


def _is_causal(model: nn.Module, name: str) -> bool | None:
    """Whether two rows that differ in their last token have the same logits before it."""
    vocabulary = int(transformers_model(model).config.get_text_config().vocab_size)
    # From the middle of the vocabulary: special tokens and placeholders of images are at its ends.
    row = (torch.arange(_TOKENS + 1, device=model_device(model)) + vocabulary // 2) % vocabulary
    rows = torch.stack([row[:-1], torch.cat([row[:-2], row[-1:]])])
    try:
        logits = _logits(model, rows)
    except (RuntimeError, ValueError, IndexError, NotImplementedError, ImportError, TypeError) as error:
        if (
            torch.accelerator.is_available()
        ):  # attention and kernels of a GPU do not run on the CPU, where the model is built
            log.info("Whether %s is causal could not be tried: %s", name, first_line(error))
            return None
        raise InputError(f"{name!r} cannot be run on token ids alone: {first_line(error)}") from error
    if logits.isnan().any() and _uses_dora(model):
        raise InputError(
            f"With DoRA {name!r} computes NaN before any training: DoRA divides each row of a layer by its length, and "
            "a row of zeros, as embeddings have for padding, has none. Leave embed_tokens and lm_head out of "
            "`model.policy.lora.target_modules`, or set `model.policy.lora.use_dora: false`."
        )
    if not logits.isfinite().all():
        log.warning(
            "%s gives logits that are not finite, so that it cannot be checked. Are its weights whole, and do they fit "
            "`model.policy.dtype`?", name,
        )  # fmt: skip
        return None
    difference = (logits[0, :-1] - logits[1, :-1]).abs().max().item()
    steps = 64 if logits.dtype in (torch.float32, torch.float64) else 4
    return difference <= steps * torch.finfo(logits.dtype).eps * logits.abs().max().item()


def _uses_dora(model: nn.Module) -> bool:
    if not has_adapters(model):
        return False
    from peft import LoraConfig

    return any(isinstance(config, LoraConfig) and config.use_dora for config in model.peft_config.values())


@torch.no_grad()
def _logits(model: nn.Module, rows: Tensor) -> Tensor:
    with evaluating([model]):
        logits: Tensor = model(input_ids=rows, use_cache=False).logits
    return logits
