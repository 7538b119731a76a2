"""Checks that a saved policy equals the one in memory."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dpr_lightning.engine import inside_of_adapters
from dpr_lightning.errors import InputError, counted
from dpr_lightning.policies.adapters import load_adapter, resolve_adapter
from dpr_lightning.policies.architectures import auto_class
from dpr_lightning.policies.policy_spec import PolicySpec
from dpr_lightning.policies.probe import difference, probe, probe_tokens, tolerance
from dpr_lightning.policies.sharding import tensors_of_state
from dpr_lightning.policies.sources import ADAPTER_CONFIG

log = logging.getLogger(__name__)
LARGEST_REREAD = 1 << 30
"""Most bytes of weights for which a saved folder is loaded again and compared by a forward pass."""


def check_weights(target: Path, expected: Mapping[str, Tensor]) -> None:
    """Compare the files of a full model with the expected weights, bit by bit, with one weight in memory at a time.

    Args:
        target: the folder.
        expected: weights and buffers by name, tied ones by each of their names.

    Raises:
        InputError: a weight is missing or has another value.
    """
    files = {name: path for path in target.glob("*.safetensors") for name in _names(path)}
    tied = bool(json.loads((target / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
    saved = {_address(expected[name]) for name in files if name in expected}
    renamed = files.keys() - expected.keys()
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt") as file:
            for name in sorted(expected.keys() & set(file.keys())):
                if not _same_bits(file.get_tensor(name), expected[name]):
                    raise _differs(target, f"the weight {name!r} has another value in {path.name}")
    for name in () if renamed else expected.keys() - files.keys():
        if not (tied and _address(expected[name]) in saved):
            raise _differs(target, f"the weight {name!r} is missing")
    if renamed:
        log.info("%d weights are saved under other names than they have in memory; not compared.", len(renamed))


def check_adapter(target: Path, model: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Compare the file of an adapter with the active adapter of ``model``, bit by bit.

    Args:
        target: the folder.
        model: the policy.
        weights: of a model in shards, from :func:`gathered_weights`.

    Raises:
        InputError: a trained weight is missing or has another value.
    """
    state = dict(weights) if weights is not None else tensors_of_state(model)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    active = str(model.active_adapter)
    with safe_open(target / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        for name in trained:
            candidates = [other for other in _saved_names(name, active) if other in names]
            # A weight that peft saves under an unknown name is recognised by its value.
            if not any(_same_bits(file.get_tensor(other), state[name]) for other in candidates or names):
                what = "has another value" if candidates else "is missing"
                raise _differs(target, f"the trained weight {name!r} {what}")


def check_saved_policy(target: Path, model: nn.Module, spec: PolicySpec, expected: Tensor) -> None:
    """Load a folder by transformers and peft, and compare its output for a short text with the policy's.

    Args:
        target: the folder.
        model: the policy in memory.
        spec: from which it was built.
        expected: its :func:`probe` of :func:`probe_tokens`.

    Raises:
        InputError: the folder cannot be loaded, or its output differs.
    """
    base: Any = inside_of_adapters(model)
    options: dict[str, Any] = {"dtype": base.dtype, "trust_remote_code": spec.trust_remote_code}
    path = target / ADAPTER_CONFIG
    state = torch.random.get_rng_state()
    try:
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            full, _ = resolve_adapter(spec)
            if full.gguf_file is not None:
                options["gguf_file"] = full.gguf_file
            source = config["base_model_name_or_path"]
            if config.get("revision"):
                options["revision"] = config["revision"]
            reader = auto_class(base.config, source)
            again: Any = reader.from_pretrained(source, **options)
            again = load_adapter(again, target, trainable=False)
        else:
            reader = auto_class(base.config, str(target)) if base.can_generate() else type(base)
            again, report = reader.from_pretrained(target, output_loading_info=True, **options)
            if report["missing_keys"] or report["unexpected_keys"]:
                wrong = sorted((*report["missing_keys"], *report["unexpected_keys"]))
                raise _differs(target, f"{counted(len(wrong), 'weight')} missing or unknown (first: {wrong[0]})")
        again = again.to(next(model.parameters()).device)
        gap = difference(expected, probe(again, probe_tokens(model)))
    finally:
        torch.random.set_rng_state(state)
    if gap > tolerance(model):
        raise _differs(target, f"log-probabilities differ by {gap:.2g} nats a token (allowed: {tolerance(model):g})")


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _saved_names(name: str, adapter: str) -> tuple[str, ...]:
    """Names under which peft may save a weight: without the names of the adapter and of peft's wrappers."""
    plain = f"{name}.".replace(f".{adapter}.", ".").removesuffix(".")
    saved = plain.replace(".modules_to_save.", ".").replace(".base_layer.", ".").replace(".token_adapter.", ".")
    return name, plain, saved, f"{plain}.weight", f"{saved}.weight", saved.removesuffix(".weight")


def _address(value: Tensor) -> tuple[int, torch.Size]:
    return value.untyped_storage().data_ptr(), value.shape


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether values are equal, NaN included; an adapter in memory may have a higher precision than the file."""
    second = second.detach().to("cpu", first.dtype)
    if first.shape != second.shape:
        return False
    return torch.equal(first, second) or torch.equal(first.nan_to_num(0.0), second.nan_to_num(0.0))


def _differs(target: Path, what: str) -> InputError:
    return InputError(
        f"The saved files are not the policy in memory: {what}. Nothing was replaced. Merge and save in float32 "
        "(`dtype`) if the policy is in half precision; `check: false` writes without this comparison."
    )
