"""Builds the model and tokenizer of a policy from its specification."""

import logging
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from dpr_lightning.engine import has_adapters, inside_of_adapters, weight_bytes
from dpr_lightning.engine.recompute import recompute_activations
from dpr_lightning.errors import InputError, counted
from dpr_lightning.partitioned_weights import whole_shape
from dpr_lightning.policies.adapters import (
    add_adapter,
    base_remedy,
    load_adapter,
    report_other_rank,
    resolve_adapter,
)
from dpr_lightning.policies.architectures import auto_class, freeze_parts_without_text, read_config
from dpr_lightning.policies.attention_choice import attention_for, tell_attention
from dpr_lightning.policies.lightning_state import load_lightning_weights
from dpr_lightning.policies.merging import merge_adapters
from dpr_lightning.policies.mistaken_paths import not_a_policy
from dpr_lightning.policies.policy_spec import PolicySpec
from dpr_lightning.policies.sharding import sharded_construction
from dpr_lightning.policies.special_tokens import carry_padding, set_padding, special_tokens
from dpr_lightning.policies.tokenizers import load_tokenizer
from dpr_lightning.policies.unreadable_files import UNREADABLE, complaint
from dpr_lightning.policies.weights_dtype import saved_dtype, weights_dtype
from dpr_lightning.policies.wrapped_models import recompute_layers, transformers_model

log = logging.getLogger(__name__)


def build_policy(
    spec: PolicySpec, *, seed: int = 0, trainable: bool = True
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Build the model and tokenizer that ``spec`` names.

    Args:
        spec: the description.
        seed: of weights that are initialised at random, including those of an adapter.
        trainable: False merges adapters into the base and freezes all weights.

    Raises:
        InputError: the folder, the weights or the tokenizer are missing or do not fit together.
    """
    base_spec, adapter = resolve_adapter(spec)
    # The GGUF file's tokenizer is used only where the specification names no other tokenizer.
    in_gguf = spec.gguf_file if spec.tokenizer is None else None
    tokenizer = load_tokenizer(
        spec.tokenizer_source,
        in_gguf,
        spec.trust_remote_code,
        pad_token=spec.pad_token,
        for_training=trainable,
        revision=spec.revision if spec.tokenizer is None else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with sharded_construction() if trainable else nullcontext():
            try:
                model: nn.Module = _load_base(base_spec, tokenizer, partial(attention_for, spec, trainable=trainable))
            except InputError as error:
                if adapter is None or spec.source == base_spec.source:
                    raise
                named = f"The adapter in {adapter!r} names that base."
                raise InputError(f"{error} {named} {base_remedy(adapter)}") from error
        if trainable:
            freeze_parts_without_text(model)
            if base_spec.source is not None and base_spec.gguf_file is None:
                _tell_wider(base_spec, model)
        frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
        if adapter is not None:
            report_other_rank(adapter, spec.lora)
            if (Path(adapter) / GENERATION_CONFIG_NAME).is_file():
                transformers_model(model).generation_config = GenerationConfig.from_pretrained(adapter)
            model = load_adapter(model, adapter, trainable=trainable and spec.lora is not None)
            if has_adapters(model) and (spec.lora is None or not trainable):
                model = merge_adapters(model)
                for name, weight in model.named_parameters():  # peft has frozen all of the base
                    weight.requires_grad_(name not in frozen)
        elif spec.lora is not None and trainable:
            model = add_adapter(model, spec.lora)
        _refuse_larger_tokenizer(model, tokenizer, str(base_spec.source))
    if spec.checkpoint is not None and spec.checkpoint.endswith(".ckpt"):
        load_lightning_weights(model, spec.checkpoint)
    special = special_tokens(tokenizer, model, pad_token=spec.pad_token, required=trainable)
    set_padding(tokenizer, special, spec.pad_token)
    carry_padding(model, tokenizer, special)
    recompute_activations(model)
    if spec.gradient_checkpointing and trainable:
        recompute_layers(model)
    # transformers loads in evaluation mode, in which gradient checkpointing and LoRA's dropout are off.
    model.train(trainable)
    if not trainable:
        model.requires_grad_(False)
    return model, tokenizer


def check_policy(spec: PolicySpec) -> None:
    """Refuse specifications that the configuration alone shows to be impossible, before data and weights are loaded.

    Raises:
        InputError: the architecture is not causal or no language model, or does not support ``spec.attention``.
    """
    base, _ = resolve_adapter(spec)
    try:
        config = read_config(base) if base.source is not None else AutoConfig.for_model(**(base.architecture or {}))
        attention_for(spec, auto_class(config, base.source or str(config.model_type)), config)
    except InputError:
        raise
    except (*UNREADABLE, ImportError) as error:
        raise _unreadable(base, error) from error


def _unreadable(spec: PolicySpec, error: Exception) -> InputError:
    if spec.source is not None and (reason := not_a_policy(spec.source)) is not None:
        return InputError(reason)
    what = repr(spec.source or spec.architecture)
    return InputError(f"No causal language model could be loaded from {what}: {complaint(error)} {_remedy(error)}")


def _load_base(
    spec: PolicySpec, tokenizer: PreTrainedTokenizerBase, choose_attention: Callable[[Any, Any], str | None]
) -> PreTrainedModel:
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.architecture is not None:
        config = architecture_config(spec, tokenizer)
        make = auto_class(config, str(config.model_type))
        attention = choose_attention(make, config)
        dtype = weights_dtype(spec, config)
        built: PreTrainedModel = make.from_config(config, attn_implementation=attention, dtype=dtype, **options)
        tell_attention(built, attention)
        return built
    assert spec.source is not None
    if spec.revision is not None:
        options["revision"] = spec.revision
    if spec.gguf_file is not None:
        options["gguf_file"] = spec.gguf_file
    try:
        config = read_config(spec)
        make = auto_class(config, spec.source)
        attention = choose_attention(make, config)
        loaded: Any = make.from_pretrained(
            spec.source,
            attn_implementation=attention,
            dtype=weights_dtype(spec, config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (torch.OutOfMemoryError, InputError):
        raise  # the cause is not in the weights, or the message names it
    except (*UNREADABLE, ImportError) as error:
        raise _unreadable(spec, error) from error
    model: PreTrainedModel = loaded[0]
    tell_attention(model, attention)
    _refuse_random_weights(spec.source, loaded[1])
    if spec.gguf_file is not None:
        # transformers refuses to save a base that has the flag of quantisation, although it is dequantised here.
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
    return model


def _tell_wider(spec: PolicySpec, model: nn.Module) -> None:
    """Log once the memory that it costs to train weights as float32 that were saved in half precision."""
    saved = saved_dtype(read_config(spec))
    if spec.dtype == "float32" and saved in ("bfloat16", "float16"):
        total = weight_bytes(model)
        log.warning(
            "The weights in %r are %s (%.3g GB). As `model.policy.dtype` is float32, they take %.3g GB here and in "
            "every full model that is saved; with %s they stay as small.",
            spec.source, saved, total / 2e9, total / 1e9, saved,
        )  # fmt: skip


def architecture_config(spec: PolicySpec, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The configuration of a policy with ``architecture``; the vocabulary and special tokens are the tokenizer's."""
    fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return AutoConfig.for_model(**(fields | (spec.architecture or {})))


def _refuse_larger_tokenizer(model: nn.Module, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    weight = inside_of_adapters(model).get_input_embeddings().weight
    rows = whole_shape(weight)[0]
    if rows < len(tokenizer):
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens and the model in {source!r} embeds {rows}. They do not "
            "belong together; set `tokenizer` to the one that the model was trained with."
        )


def _refuse_random_weights(source: str, info: dict[str, Any]) -> None:
    """Refuse missing or misshapen weights, which transformers initialises at random with only a warning."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing:
        raise InputError(
            f"{source!r} lacks {len(missing)} of the weights that its config.json describes (first: {missing[0]}), and "
            "a policy with random weights in it is none. Was it saved by another architecture, or only in part?"
        )
    if mismatched:
        name, actual, expected = mismatched[0]
        raise InputError(
            f"{source!r} holds {counted(len(mismatched), 'weight')} of another size than its config.json describes "
            f"(first: {name}, {tuple(actual)} instead of {tuple(expected)}). Put the config.json beside them that they "
            "were saved with."
        )


def _remedy(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "Convert its weights to safetensors."
    if isinstance(error, ImportError):
        return "Install what it names, or choose weights that do without."
    if "trust_remote_code" in str(error):
        return "If you have read that code and trust it, set `trust_remote_code: true`."
    return "Point `source` at a hub id or at a folder with config.json and model.safetensors."
