"""The class of transformers for a configuration, and the errors for models that are no causal language models."""

import logging
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from dpr_lightning.errors import InputError
from dpr_lightning.model_options import ModelOptions
from dpr_lightning.partitioned_weights import whole_numel
from dpr_lightning.policies.policy_spec import PolicySpec

log = logging.getLogger(__name__)
DECODERS = "Choose a decoder, such as Llama, Qwen, Gemma or GPT-2, as `model.policy.source`."

HEAD_CLASS = "ForSequenceClassification"
"""In the names of transformers' models with a head of scores."""


def read_config(spec: PolicySpec) -> PreTrainedConfig:
    """The configuration of ``spec.source``; raises transformers' errors where there is none."""
    assert spec.source is not None
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.gguf_file is not None:
        options["gguf_file"] = spec.gguf_file
    if spec.revision is not None:
        options["revision"] = spec.revision
    config: PreTrainedConfig = AutoConfig.from_pretrained(spec.source, **options)
    return config


def auto_class(config: PreTrainedConfig, name: str) -> Any:
    """The auto class of transformers that builds a causal language model of ``config``.

    Models that read images too are loaded whole, and trained on text alone.

    Args:
        config: of the model.
        name: of its folder, for messages.

    Raises:
        InputError: the architecture is an encoder, an encoder-decoder, or no language model; or it has a head of
            scores.
    """
    kind = config.model_type
    options = ModelOptions(config)
    if config.is_encoder_decoder:
        raise InputError(
            f"{name!r} is an encoder-decoder ({kind}): one half reads the prompt, the other writes the answer, where a "
            f"policy has to read both as one row. {DECODERS}"
        )
    heads = [architecture for architecture in config.architectures or [] if HEAD_CLASS in architecture]
    if heads:
        raise InputError(
            f"{name!r} is a verifier head or reward model: its config.json names {heads[0]}, which scores responses "
            "and generates none. Name the folder of a policy."
        )
    if "AutoModelForCausalLM" in options.remote_classes:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not options.is_decoder:
        raise InputError(not_causal(name, config))
    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    raise InputError(f"transformers has no causal language model of the kind {kind!r}, which {name!r} is. {DECODERS}")


def not_causal(name: str, config: PreTrainedConfig) -> str:
    """The error message for a model in which tokens attend to later ones."""
    switch = (
        " If its weights were trained to write from left to right, set `is_decoder: true` in its config.json."
        if ModelOptions(config).is_decoder is False and type(config) in MODEL_FOR_MASKED_LM_MAPPING
        else ""
    )
    return (
        f"{name!r} ({config.model_type}) is not causal: what it says of a token depends on later tokens, so that it "
        f"would be trained on what it has to predict. {DECODERS}{switch}"
    )


def parts_without_text(model: nn.Module) -> list[str]:
    """Names of the parts of ``model`` that text does not go through, such as a vision tower."""
    config: Any = model.config
    if config.get_text_config() is config:
        return []
    get_decoder: Any = model.get_decoder
    get_head: Any = model.get_output_embeddings
    text = set(get_decoder().modules()) | set((get_head() or nn.Identity()).modules())
    parts: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{part}.") for part in parts)
        if not inside and not text & set(module.modules()) and any(True for _ in module.parameters()):
            parts.append(name)
    return parts


def freeze_parts_without_text(model: nn.Module) -> None:
    """Freeze the parts that text does not go through, such as a vision tower: they would get no gradient."""
    parts = parts_without_text(model)
    frozen = 0
    for part in parts:
        for weight in model.get_submodule(part).requires_grad_(False).parameters():
            frozen += whole_numel(weight)
    if parts:
        log.warning(
            "%s reads images too, and is given text alone: %s (%s weights) are not trained, and are saved unchanged.",
            type(model).__name__,
            ", ".join(parts),
            f"{frozen:,}",
        )
