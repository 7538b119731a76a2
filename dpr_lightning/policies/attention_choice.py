"""The attention implementation of a policy: the user's choice, that saved in its folder, or the architecture's."""

import copy
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpr_lightning.errors import InputError, first_line
from dpr_lightning.policies.adapters import DESCRIPTION, base_of, is_adapter
from dpr_lightning.policies.policy_spec import AUTO, PolicySpec

log = logging.getLogger(__name__)


def chosen_attention(spec: PolicySpec) -> str:
    """The choice in ``spec``; without one, that saved in its folder or its adapter's base; else ``auto``."""
    if spec.attention != AUTO:
        return spec.attention
    # The base of an adapter in `checkpoint` is `source`, even if the adapter names another one.
    for folder, has_base in ((spec.checkpoint, False), (spec.source, True)):
        if folder is not None and (saved := _saved(Path(folder), has_base)) != AUTO:
            return saved
    return AUTO


def _saved(folder: Path, has_base: bool = True) -> str:
    path = folder / DESCRIPTION
    if path.is_file() and (saved := json.loads(path.read_text(encoding="utf-8")).get("attention")):
        return str(saved)
    base = base_of(folder).source if has_base and folder.is_dir() and is_adapter(folder) else None
    return AUTO if base is None else _saved(Path(base))


def save_attention(folder: Path, spec: PolicySpec) -> None:
    """Save an explicit choice in ``folder``, from which every later command reads it."""
    choice = chosen_attention(spec)
    if choice == AUTO:
        return
    path = folder / DESCRIPTION
    description = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(description | {"attention": choice}, indent=2) + "\n", encoding="utf-8")


def attention_for(spec: PolicySpec, kind: Any, config: Any, *, trainable: bool = True) -> str | None:
    """The ``attn_implementation`` for transformers; None: `sdpa` where the architecture has it, else `eager`.

    Args:
        spec: of the policy, including its adapter. A choice in it must be followed; one saved in its folder is followed
            where this machine supports it.
        kind: the auto class that builds the model.
        config: of the model.
        trainable: whether the error message names the option of the policy in training, or that of frozen copies.

    Raises:
        InputError: the architecture or this machine does not support the choice in ``spec``.
    """
    choice = chosen_attention(spec)
    if choice in (AUTO, "eager"):
        return None if choice == AUTO else choice
    reason = _refusal(choice, kind, config, spec.trust_remote_code)
    if reason is None:
        return choice
    if spec.attention == AUTO:
        _say_once(f"The policy was trained with attention {choice!r}, which is not to be had here: {reason}")
        return None
    option = "model.policy.attention" if trainable else "data.attention"
    raise InputError(
        f"`{option}: {choice}` cannot be used for {config.model_type} here: {reason.rstrip('.')}. Leave `{option}` "
        "out, which takes what the architecture has."
    )


def _refusal(choice: str, kind: Any, config: Any, trust_remote_code: bool) -> str | None:
    """Why transformers cannot build the model with this attention; None: it can, or it fails without it too."""
    error = _failure(choice, kind, config, trust_remote_code)
    if error is not None and _failure(None, kind, config, trust_remote_code) is None:
        return first_line(error).split(". ")[0]
    return None


def _failure(attention: str | None, kind: Any, config: Any, trust_remote_code: bool) -> Exception | None:
    try:
        with torch.device("meta"):
            kind.from_config(copy.deepcopy(config), attn_implementation=attention, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError, RuntimeError, TypeError, KeyError) as error:
        return error
    return None


def tell_attention(model: nn.Module, requested: str | None) -> None:
    """Log once which attention is used, where it is not `sdpa`."""
    config: Any = model.config
    used = config._attn_implementation
    attends = any("attention" in type(module).__name__.lower() for module in model.modules())
    if requested is None and used != "sdpa" and attends:
        _say_once(f"{config.model_type} has no `sdpa` attention in transformers, so that it is attended with {used!r}.")


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)
