"""Adapters of peft: finding them, finding their base, and adding them to a model."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dpr_lightning.errors import InputError, counted, first_line, last_line
from dpr_lightning.policies.architectures import parts_without_text
from dpr_lightning.policies.lora_targets import ALL_LINEAR, check_targets, fused_experts, tell_targets
from dpr_lightning.policies.mistaken_paths import not_a_policy
from dpr_lightning.policies.policy_spec import LoraSpec, PolicySpec
from dpr_lightning.policies.sources import (
    ADAPTER_CONFIG,
    adapter_folder,
    is_missing_path,
    lasting_source,
    relative_source,
)
from dpr_lightning.policies.unreadable_files import UNREADABLE
from dpr_lightning.policies.vocabulary_rows import add_embedding_rows, tensor_shapes

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)
DESCRIPTION = "dpr_policy.json"
FUSED_MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
"""Architectures that use the weights of `out_proj` and `dt_proj` without calling the layers, so that an adapter on them
has no effect. Only for `out_proj` does peft refuse one."""
UNMERGEABLE = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
    *("OSF", "POLY", "SHADOW", "XLORA", "aLoRA"),
)
"""Kinds of peft's adapters that are more than a change of weights, or that peft cannot unmerge."""


def resolve_adapter(spec: PolicySpec) -> tuple[PolicySpec, str | None]:
    """Split a specification into that of its full base and the folder of an adapter on it, if there is one.

    Raises:
        InputError: the checkpoint or the adapter's base does not exist, or adapters of this kind are not supported.
    """
    start = spec.checkpoint if spec.checkpoint and not spec.checkpoint.endswith(".ckpt") else None
    if start is not None and not Path(start).exists() and start.startswith((".", "/", "runs/")):
        raise InputError(f"The checkpoint {start!r} does not exist. Run the stage that writes it, or mend the path.")
    for source in (start, spec.source):
        folder = adapter_folder(source, spec.revision if source == spec.source else None) if source else None
        if folder is not None:
            adapter_config(folder)
            base = base_of(folder) if source == spec.source else replace(spec, checkpoint=None)
            full = replace(base, attention=spec.attention, trust_remote_code=spec.trust_remote_code, lora=None)
            return replace(full, dtype=spec.dtype), folder
        if source is not None:
            _refuse_several_adapters(source)
    if start is not None:
        base = replace(spec, source=start, architecture=None, gguf_file=None, checkpoint=None, revision=None)
        return base, None
    return spec, None


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder or hub id is a peft adapter instead of a full model."""
    return adapter_folder(str(folder)) is not None


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of the adapter in ``folder``.

    Raises:
        InputError: it cannot be read, or adapters of this kind are not supported.
    """
    path = Path(folder) / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = str(config["peft_type"]).upper()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as the configuration of an adapter: {first_line(error)}") from error
    if config.get("alora_invocation_tokens"):
        kind = "aLoRA"
    if kind in UNMERGEABLE:
        raise InputError(
            f"The adapter in {str(folder)!r} is of the kind {kind}, which cannot be merged into its base, and policies "
            "are sampled from, compared and exported with adapters merged. Use LoRA, DoRA or IA3 instead."
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InputError(
            f"The adapter in {str(folder)!r} was trained for the task {config['task_type']}, and a policy is a causal "
            "language model (CAUSAL_LM)."
        )
    return config


def base_of(folder: str | Path) -> PolicySpec:
    """The specification of the full model that the adapter in ``folder`` was trained on.

    Raises:
        InputError: the adapter does not name its base, or the base does not exist.
    """
    folder = Path(adapter_folder(str(folder)) or folder)
    config, path = adapter_config(folder), folder / DESCRIPTION
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = config.get("base_model_name_or_path")
    source = saved.get("source") or named
    if not source:
        raise InputError(
            f"The adapter in {str(folder)!r} does not say which model it belongs to. Name that as "
            "`model.policy.source` and the adapter as `model.policy.checkpoint`, or write it into "
            f"{folder / ADAPTER_CONFIG} as `base_model_name_or_path`."
        )
    # If the base was moved, one of its other names may still be right.
    alternatives = (folder / saved["relative"] if saved.get("relative") else None, named, folder.parent / (named or ""))
    if not Path(source).exists():
        source = next((str(path) for path in alternatives if path and named and Path(path).exists()), source)
    if is_missing_path(source):
        raise InputError(f"The base {source!r} of the adapter in {str(folder)!r} is not there. {base_remedy(folder)}")
    revision = saved.get("revision") or config.get("revision")
    tokenizer, gguf_file = saved.get("tokenizer"), saved.get("gguf_file")
    return PolicySpec(source=source, tokenizer=tokenizer, gguf_file=gguf_file, revision=revision)


def changes_nothing_else(folder: str | Path, policy: nn.Module) -> bool:
    """Whether the adapter in ``folder`` can share one base with that of ``policy``.

    Both must be LoRA, and the one in ``folder`` without biases, trained tokens or an initialisation that changes the
    base, on layers that have an adapter already.
    """
    config = adapter_config(folder)
    adapted: Any = policy
    trained = adapted.peft_config[adapted.active_adapter]
    whole = set(config.get("modules_to_save") or ())
    if config["peft_type"] != "LORA" or trained.peft_type.value != "LORA" or config.get("bias", "none") != "none":
        return False
    if config.get("trainable_token_indices") or config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        return False
    path = Path(folder) / "adapter_model.safetensors"
    return whole <= set(trained.modules_to_save or ()) and all(
        "lora_" in name or any(f".{module}." in name for module in whole) for name in tensor_shapes(path)
    )


def base_remedy(folder: str | Path) -> str:
    """The remedy where the base of the adapter in ``folder`` has moved."""
    ours, theirs = Path(folder) / DESCRIPTION, Path(folder) / ADAPTER_CONFIG
    entry = f"'source' in {ours}" if ours.is_file() else f"'base_model_name_or_path' in {theirs}"
    return (
        f"Set {entry} to where it is now; or, where a policy is trained, name the base as `model.policy.source` and "
        "the adapter as `model.policy.checkpoint`."
    )


def describe_base(spec: PolicySpec, target: Path, folder: Path) -> None:
    """Write into a saved adapter which base it belongs to, so that the base is found from any folder and machine.

    Args:
        spec: from which the policy was built.
        target: the folder with the adapter.
        folder: to which ``target`` will be renamed.
    """
    base, _ = resolve_adapter(spec)
    assert base.source is not None
    source, revision = lasting_source(base.source, base.revision)
    tokenizer = lasting_source(base.tokenizer)[0] if base.tokenizer is not None else None
    saved = {"source": source, "tokenizer": tokenizer, "gguf_file": base.gguf_file, "revision": revision}
    if Path(source).is_absolute():
        saved["relative"] = relative_source(source, folder)
    (target / DESCRIPTION).write_text(json.dumps(saved, indent=2) + "\n")
    path = target / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": source, "revision": revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_several_adapters(source: str) -> None:
    """Refuse a folder with several adapters, which peft writes into subfolders of their names."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file() and any(path.glob(f"*/{ADAPTER_CONFIG}")):
        raise InputError(not_a_policy(source))


def report_other_rank(folder: str, spec: LoraSpec | None) -> None:
    """Warn where ``spec`` has another rank or alpha than the adapter, which keeps those that it was trained with."""
    if spec is None:
        return
    config = adapter_config(folder)
    if (config.get("r"), config.get("lora_alpha")) != (spec.rank, spec.alpha):
        log.warning(
            "The adapter in %s has rank %s and alpha %s, and keeps them; `lora` asks for %s and %s.",
            folder, config.get("r"), config.get("lora_alpha"), spec.rank, spec.alpha,
        )  # fmt: skip


def _require_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("LoRA needs the package peft: pip install 'dpr-lightning[lora]'.") from error
    return peft


def add_adapter(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """Put a new adapter on ``model``, freeze its other weights, and log which layers have an adapter.

    Raises:
        InputError: no layer has a name in ``spec``, or peft refuses an option.
    """
    peft = _require_peft()
    check_targets(model, spec)
    fused = fused_experts(model)
    try:
        config = peft.LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=spec.dropout,
            target_modules=spec.target_modules,
            target_parameters=spec.target_parameters,
            exclude_modules=_excluded(model, spec),
            modules_to_save=spec.modules_to_save,
            use_dora=spec.use_dora,
            use_rslora=spec.use_rslora,
            task_type="CAUSAL_LM",
        )
        adapted: PeftModel = peft.get_peft_model(model, config)
    except (ValueError, TypeError, re.error) as error:
        raise InputError(f"peft refuses `model.policy.lora`: {first_line(error)}") from error
    tell_targets(adapted, spec, fused)
    return adapted


def _excluded(model: nn.Module, spec: LoraSpec) -> str | None:
    """Pattern for peft of the modules that get no adapter: text does not go through them, or peft refuses them."""
    patterns = [f"{re.escape(part)}(\\..*)?" for part in parts_without_text(model)]
    config: Any = model.config
    if spec.target_modules == ALL_LINEAR and config.model_type in FUSED_MAMBA:
        patterns.append(r".*\.(out_proj|dt_proj)")
    return "|".join(f"({pattern})" for pattern in patterns) or None


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool, name: str = "default") -> nn.Module:
    """Put the adapter saved in ``folder`` on ``model``, next to any that it has already.

    Raises:
        InputError: it belongs to another base, or the installed peft does not support its kind.
    """
    peft = _require_peft()
    try:
        if isinstance(model, peft.PeftModel):
            # peft puts the whole model into evaluation mode when it loads an adapter that is not trained.
            active, training = model.active_adapter, model.training
            result = model.load_adapter(str(folder), name, is_trainable=trainable)
            model.set_adapter(active)
            model.train(training)
            adapted: Any = model
        else:
            add_embedding_rows(model, Path(folder))
            config = peft.PeftConfig.from_pretrained(str(folder))
            config.inference_mode = not trainable
            kind = peft.PeftModelForCausalLM if config.task_type else peft.PeftModel
            adapted = kind(model, config, name)
            result = adapted.load_adapter(str(folder), name, is_trainable=trainable)
    except (torch.OutOfMemoryError, InputError):
        raise  # the cause is not in the weights
    except UNREADABLE as error:
        raise InputError(f"The adapter in {str(folder)!r} does not fit this base: {last_line(error)}") from error
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise InputError(
            f"The adapter in {str(folder)!r} does not fit this base: it lacks "
            f"{counted(len(result.missing_keys), 'weight')} of the layers that it changes, and has "
            f"{len(result.unexpected_keys)} for layers that are not there (first: "
            f"{wrong[0]}). Was it trained on another model?"
        )
    loaded: nn.Module = adapted
    return loaded
