"""Merges adapters into their base: permanently, or temporarily and then restored to the bit."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpr_lightning.engine import has_adapters, is_sharded
from dpr_lightning.errors import InputError, first_line
from dpr_lightning.model_options import ModelOptions
from dpr_lightning.policies.probe import difference, probe, probe_tokens, tolerance
from dpr_lightning.policies.sharding import tensors_of_state
from dpr_lightning.policies.wrapped_models import transformers_model

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)
_REFUSALS = (NotImplementedError, ValueError)
"""peft's exceptions for adapters that it cannot merge."""


def merge_adapters(model: "PeftModel") -> nn.Module:
    """Merge the active adapter into its base permanently, and return the plain model.

    Tied word embeddings stay tied if the merged ones are equal; otherwise they become separate, also in the
    configuration.

    Raises:
        InputError: adapters of this kind cannot be merged, or the merged model has other outputs.
    """
    base = transformers_model(model)
    tied = tied_names(base)
    tokens = None if is_sharded(model) else probe_tokens(model)
    before = None if tokens is None else probe(model, tokens)
    _separate_shared(base)
    try:
        with _tied_on_purpose():
            merged: nn.Module = model.merge_and_unload()
    except _REFUSALS as error:
        raise _cannot_be_merged(model, error) from error
    if tied:
        _tie_or_untie(base, tied)
    if before is not None and tokens is not None:
        apart, allowed = difference(before, probe(merged, tokens)), tolerance(base)
        if apart > allowed:
            raise InputError(
                f"Merged into its base, the adapter is another policy: log-probabilities differ by {apart:.2g} nats a "
                f"token (allowed: {allowed:g}). Set `dtype: float32` if the policy is in half precision."
            )
    return merged


def _tie_or_untie(base: PreTrainedModel, tied: Mapping[str, str]) -> None:
    """Tie merged word embeddings again where they are equal; otherwise mark them as separate in the configuration."""
    if _differing(tied, dict(base.named_parameters(remove_duplicate=False))):
        untie(base, tied)
        log.warning(
            "The adapter changes one of two word embeddings that its base ties: merged they are two matrices, and the "
            "configuration says `tie_word_embeddings: false`."
        )
    else:
        # peft compares addresses, but shared weights were separated above.
        base.config.tie_word_embeddings = True
        base.tie_weights()


@contextmanager
def merged_weights(model: nn.Module) -> Iterator[tuple[PreTrainedModel, dict[str, Tensor]]]:
    """The model inside of adapters, and its weights under their names without adapters, with the active one merged.

    The adapter is merged in place while the block runs, and copies of the changed weights are restored afterwards:
    subtracting the update would leave rounding errors, large ones in bf16. A model without adapters is not changed. If
    the base ties two weights and the adapter changes only one, they are separate here; see :func:`untied_names`.

    Raises:
        InputError: adapters of this kind cannot be merged.
    """
    if not has_adapters(model):
        yield transformers_model(model), {name: value.detach() for name, value in tensors_of_state(model).items()}
        return
    base = transformers_model(model)
    separated = _separate_shared(base)
    before = [(weight, weight.detach().clone()) for layer in _base_layers(base) for weight in layer.parameters()]
    try:
        try:
            with _tied_on_purpose():
                model.merge_adapter()
        except _REFUSALS as error:
            raise _cannot_be_merged(model, error) from error
        weights = plain_weights(base)
        tied = tied_names(base)
        untied = _differing(tied, weights)
        weights |= {target: weights[source] for target, source in tied.items() if target not in untied}
        yield base, weights
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for weight, value in before:
                weight.copy_(value)
        for module, name, weight in separated:
            module._parameters[name] = weight


def plain_weights(base: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a model with merged adapters, under their names without adapters.

    Args:
        base: from :func:`inside_of_adapters`, with the adapters merged in place.
    """
    weights: dict[str, Tensor] = {}
    _collect(base, "", weights)
    return weights


def tied_names(base: PreTrainedModel) -> dict[str, str]:
    """The names of weights that a model's configuration ties, with the name of the weight that each is tied to."""
    return dict(base.get_expanded_tied_weights_keys(all_submodels=True))


def untied_names(base: PreTrainedModel, weights: Mapping[str, Tensor]) -> list[str]:
    """The names in ``weights`` that the configuration of ``base`` ties to another one, but whose values differ."""
    return _differing(tied_names(base), weights)


def _differing(tied: Mapping[str, str], weights: Mapping[str, Tensor]) -> list[str]:
    return [target for target, source in tied.items() if not torch.equal(weights[target], weights[source])]


def may_untie(model: nn.Module) -> bool:
    """Whether ``model`` has adapters on either side of tied word embeddings, so that merged ones may differ."""
    if not has_adapters(model):
        return False
    base = transformers_model(model)
    names = {name for pair in tied_names(base).items() for name in pair}
    layers = {name.rpartition(".")[0] for name in names}
    return any(name in layers and _is_adapted(module) for name, module in base.named_modules())


def untie(base: PreTrainedModel, tied: Mapping[str, str]) -> None:
    """Make tied word embeddings separate matrices of the same values, also in the configuration.

    Args:
        base: a model without adapters.
        tied: from :func:`tied_names`; a pair that is separate already is not changed.
    """
    for target, source in tied.items():
        layer, _, name = target.rpartition(".")
        module, weight = base.get_submodule(layer), base.get_parameter(target)
        if weight is base.get_parameter(source):
            module._parameters[name] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    for part in _configurations(base):
        part.tie_word_embeddings = False
    base.all_tied_weights_keys = {}


@contextmanager
def untied_configuration(base: PreTrainedModel) -> Iterator[None]:
    """While the block runs, word embeddings are separate in the configuration of ``base``."""
    parts = _configurations(base)
    tied = [part.tie_word_embeddings for part in parts]
    try:
        for part in parts:
            part.tie_word_embeddings = False
        yield
    finally:
        for part, value in zip(parts, tied, strict=True):
            part.tie_word_embeddings = value


def _configurations(base: PreTrainedModel) -> list[Any]:
    """The configurations of a model and of its text part that tie embeddings."""
    parts = {id(part): part for part in (base.config, base.config.get_text_config())}
    return [part for part in parts.values() if ModelOptions(part).ties_embeddings is not None]


def _collect(module: nn.Module, prefix: str, weights: dict[str, Tensor]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        trained = active and not module.disable_adapters
        _collect(module.modules_to_save[active[0]] if trained else module.original_module, prefix, weights)
        return
    if isinstance(module, BaseTunerLayer):
        _collect(module.get_base_layer(), prefix, weights)
        return
    if _is_adapted(module):  # another wrapper of peft, such as that for trained tokens
        _collect(module.get_submodule("original_module"), prefix, weights)
        return
    for name, weight in module._parameters.items():
        if weight is not None:
            weights[prefix + name] = weight.detach()
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            weights[prefix + name] = buffer.detach()
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", weights)


def _is_adapted(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def _base_layers(base: nn.Module) -> list[nn.Module]:
    """The base's layers that merging changes in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module.get_base_layer() for module in base.modules() if isinstance(module, BaseTunerLayer))
    return list({id(layer): layer for layer in layers}.values())


def _separate_shared(base: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give adapted layers a copy of each weight that they share with other layers; returns the original weights.

    Merging in place would otherwise change the other layer too.
    """
    layers = _base_layers(base)
    changed = {id(layer) for layer in layers}
    users = Counter(
        id(weight) for module in base.modules() for weight in module._parameters.values() if weight is not None
    )
    separated: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in base.modules():
        if id(module) not in changed:
            continue
        for name, weight in module._parameters.items():
            if weight is not None and users[id(weight)] > 1:
                separated.append((module, name, weight))
                module._parameters[name] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    return separated


@contextmanager
def _tied_on_purpose() -> Iterator[None]:
    """Silence peft's warnings of tied embeddings, which are handled here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(tie_word_embeddings|no longer tied)")
        yield


def _cannot_be_merged(model: "PeftModel", error: Exception) -> InputError:
    from peft import PeftType

    kinds = ", ".join(sorted({str(PeftType(config.peft_type).value) for config in model.peft_config.values()}))
    return InputError(
        f"An adapter of the kind {kinds} cannot be merged into its base ({first_line(error)}), and a policy is sampled "
        "from and exported with its adapter merged. Use LoRA, DoRA or IA3, or merge it with the program that made it."
    )
