"""Saves policies as ordinary Hugging Face folders, atomically."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.engine import has_adapters, is_sharded, weight_bytes
from dpr_lightning.folders import whole_folder
from dpr_lightning.policies.adapters import describe_base, is_adapter
from dpr_lightning.policies.attention_choice import save_attention
from dpr_lightning.policies.base_files import keep_base_files
from dpr_lightning.policies.merging import merged_weights, untied_configuration, untied_names
from dpr_lightning.policies.policy_spec import PolicySpec
from dpr_lightning.policies.probe import probe, probe_tokens
from dpr_lightning.policies.saved_check import LARGEST_REREAD, check_adapter, check_saved_policy, check_weights
from dpr_lightning.policies.sharding import tensors_of_state
from dpr_lightning.policies.wrapped_models import transformers_model


def save_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    spec: PolicySpec,
    *,
    merge: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    check: bool = True,
) -> Path:
    """Write ``model`` and ``tokenizer`` to ``folder``: a full model, or the active adapter when ``model`` has one.

    The folder's settings are those of its base, with the policy's changes. Before the folder is replaced, the files are
    compared with the weights in memory; a policy of up to 1 GiB is also loaded from them, and its output compared.

    Args:
        model: from :func:`build_policy`.
        tokenizer: saved in the same folder.
        folder: replaced once the new one is complete.
        spec: from which ``model`` was built; names the base in the folder of an adapter.
        merge: save a policy with an adapter as a full model; ``model`` is not changed, to the bit.
        weights: of a model in shards, from :func:`gathered_weights`; None, as with ``merge``: those of ``model``.
        check: whether to compare the files with the policy.

    Raises:
        InputError: the files differ from the policy in memory, or cannot be written.
    """
    folder = Path(folder)
    loads_again = check and not is_sharded(model) and weight_bytes(model) <= LARGEST_REREAD
    expected = probe(model, probe_tokens(model)) if loads_again else None
    state: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    with whole_folder(folder) as unfinished:
        if merge and has_adapters(model):
            with merged_weights(model) as (inside, merged):
                untied = bool(untied_names(inside, merged))
                with untied_configuration(inside) if untied else nullcontext():
                    inside.save_pretrained(unfinished, state_dict=dict(merged))
                if check:
                    check_weights(unfinished, merged)
        elif has_adapters(model):
            selected = [model.active_adapter]
            model.save_pretrained(str(unfinished), selected_adapters=selected, **state)
            nested = unfinished / str(model.active_adapter)
            if nested.is_dir():
                for path in nested.iterdir():
                    path.rename(unfinished / path.name)
                nested.rmdir()
        else:
            transformers_model(model).save_pretrained(unfinished, **state)
            if check:
                check_weights(unfinished, weights if weights is not None else tensors_of_state(model))
        (unfinished / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(unfinished)
        if is_adapter(unfinished):
            describe_base(spec, unfinished, folder)
            transformers_model(model).generation_config.save_pretrained(unfinished)
            if check:
                check_adapter(unfinished, model, weights)
        keep_base_files(unfinished, spec)
        save_attention(unfinished, spec)
        if expected is not None:
            check_saved_policy(unfinished, model, spec, expected)
    return folder
