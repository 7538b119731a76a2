"""Adapters of peft: where they are, which base they belong to, and how they get on it."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpr_lightning.errors import InputError, last_line
from dpr_lightning.policies.architectures import parts_without_text
from dpr_lightning.policies.reading import UNREADABLE
from dpr_lightning.policies.spec import LoraSpec, PolicySpec

log = logging.getLogger(__name__)
DESCRIPTION = "dpr_policy.json"


def resolve_adapter(spec: PolicySpec) -> tuple[PolicySpec, str | None]:
    """Split a description into that of its full base and the folder of an adapter on it, if there is one."""
    start = spec.checkpoint if spec.checkpoint and not spec.checkpoint.endswith(".ckpt") else None
    if start is not None and not Path(start).exists() and start.startswith((".", "/", "runs/")):
        raise InputError(f"The checkpoint {start!r} does not exist. Run the stage that writes it, or mend the path.")
    for folder in (start, spec.source):
        if folder is not None and is_adapter(folder):
            base = base_of(folder) if folder == spec.source else replace(spec, checkpoint=None)
            return replace(base, dtype=spec.dtype, attention=spec.attention, lora=None), folder
    if start is not None:
        return replace(spec, source=start, architecture=None, gguf_file=None, checkpoint=None), None
    return spec, None


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a peft adapter instead of a full model."""
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: str | Path) -> PolicySpec:
    """The description of the full model that the adapter in ``folder`` was trained on."""
    description = Path(folder) / DESCRIPTION
    if description.is_file():
        held = json.loads(description.read_text())
        return PolicySpec(**{name: held.get(name) for name in ("source", "tokenizer", "gguf_file")})
    held = json.loads((Path(folder) / "adapter_config.json").read_text())
    base = held.get("base_model_name_or_path")
    if not base:
        raise InputError(f"The adapter in {str(folder)!r} does not say which model it belongs to.")
    return PolicySpec(source=base)


def report_other_rank(folder: str, spec: LoraSpec | None) -> None:
    """An adapter keeps the shape it was trained with; say so where another one was asked for."""
    if spec is None:
        return
    held = json.loads((Path(folder) / "adapter_config.json").read_text())
    if (held.get("r"), held.get("lora_alpha")) != (spec.rank, spec.alpha):
        log.warning(
            "The adapter in %s has rank %s and alpha %s, and keeps them; `lora` asks for %s and %s.",
            folder, held.get("r"), held.get("lora_alpha"), spec.rank, spec.alpha,
        )  # fmt: skip


def _require_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("LoRA needs the package peft: pip install 'dpr-lightning[lora]'.") from error
    return peft


def add_adapter(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """Put a new adapter on ``model``, whose other weights are frozen."""
    peft = _require_peft()
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
        exclude_modules=_outside_text(model),
        task_type="CAUSAL_LM",
    )
    adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


def _outside_text(model: nn.Module) -> str | None:
    """Names of modules that text does not go through, as peft's pattern of names without adapters."""
    parts = parts_without_text(model)
    return f"({'|'.join(map(re.escape, parts))})(\\..*)?" if parts else None


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool, name: str = "default") -> nn.Module:
    """Put the adapter saved in ``folder`` on ``model``, beside those that are there already."""
    peft = _require_peft()
    try:
        if isinstance(model, peft.PeftModel):
            # peft puts the whole model in evaluation mode when it loads an adapter that is not trained.
            active, training = model.active_adapter, model.training
            model.load_adapter(str(folder), name, is_trainable=trainable)
            model.set_adapter(active)
            model.train(training)
            kept: nn.Module = model
            return kept
        adapted: nn.Module = peft.PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable)
        return adapted
    except torch.OutOfMemoryError:
        raise  # the weights are as they should be
    except UNREADABLE as error:
        raise InputError(f"The adapter in {str(folder)!r} does not fit this base: {last_line(error)}") from error
