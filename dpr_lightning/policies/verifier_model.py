"""A verifier: a policy's trunk with a head of one output, in the format of transformers' reward models."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.utils import logging

from dpr_lightning.engine import model_device, parts_by_length
from dpr_lightning.errors import InputError, first_line
from dpr_lightning.policies.adapters import resolve_adapter
from dpr_lightning.policies.architectures import HEAD_CLASS, read_config
from dpr_lightning.policies.attention_choice import attention_for
from dpr_lightning.policies.mistaken_paths import not_a_policy
from dpr_lightning.policies.policy_spec import Dtype, PolicySpec
from dpr_lightning.policies.tokenizers import load_tokenizer, same_vocabulary
from dpr_lightning.policies.weights_dtype import weights_dtype
from dpr_lightning.policies.wrapped_models import transformers_model

HEAD = "score"
"""Name of the head in transformers' models."""
TOKEN_BUDGET = 16384


def build_verifier_head(spec: PolicySpec, *, trainable: bool = True) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The trunk of a full policy with a head of one output.

    Args:
        spec: of the policy. If its folder has a head already, that one is loaded.
        trainable: whether a folder without a head gets a new one, initialised to 0; False refuses it.

    Raises:
        InputError: the folder is no full model, or its architecture has no head for sequences.
    """
    base = full_model_of(spec)
    assert base.source is not None
    tokenizer = load_tokenizer(
        base.tokenizer_source, None, base.trust_remote_code, pad_token=base.pad_token, for_training=trainable
    )
    verbosity = logging.get_verbosity()
    # Silence transformers' warning that the head is new.
    logging.set_verbosity_error()
    try:
        config = read_config(base)
        attention = attention_for(spec, AutoModelForSequenceClassification, config)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            base.source,
            num_labels=1,
            dtype=weights_dtype(base, config),
            attn_implementation=attention,
            trust_remote_code=base.trust_remote_code,
            output_loading_info=True,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"No model with a head for sequences could be made of {base.source!r}: {first_line(error)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if not isinstance(dict(model.named_children()).get(HEAD), nn.Linear):
        raise InputError(f"{type(model).__name__} has no linear head named `{HEAD}`, which a verifier head needs.")
    if any(name.startswith(f"{HEAD}.") for name in info["missing_keys"]):
        if not trainable:
            raise InputError(
                f"The weights in {base.source!r} have none of a head (`{HEAD}`), so that every score would be 0. Name "
                "a folder that a training of a verifier head saved, such as with configs/toy/reward_model.yaml."
            )
        with torch.no_grad():
            model.score.weight.zero_()
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def full_model_of(spec: PolicySpec) -> PolicySpec:
    """The specification of the model on which a head grows.

    Raises:
        InputError: it is no folder of a full model.
    """
    base, adapter = resolve_adapter(spec)
    if adapter is not None or base.lora is not None or base.gguf_file is not None or base.source is None:
        raise InputError(
            "A verifier head grows on a full model folder. Write the adapter or the GGUF policy as one first: "
            "dpr export --merge, and name that folder as `policy.source`."
        )
    if base.checkpoint is not None:
        raise InputError("A verifier head starts from a model folder: export the `.ckpt` with `dpr export` first.")
    return base


def load_verifier_head(folder: str, sft: PreTrainedTokenizerBase, dtype: Dtype = "float32") -> nn.Module:
    """Load a trained verifier, frozen, for responses in the tokens of ``sft``.

    Raises:
        InputError: the folder has no head, or another vocabulary.
    """
    if not any(HEAD_CLASS in name for name in _architectures(folder)):
        raise InputError(
            not_a_policy(folder)
            or f"{folder!r} holds no verifier head: its config.json names no model for sequence classification. Train "
            "one: dpr fit --config configs/toy/reward_model.yaml (pairs) or configs/toy/verifier_head.yaml."
        )
    model, tokenizer = build_verifier_head(PolicySpec(source=folder, dtype=dtype), trainable=False)
    if difference := same_vocabulary(sft, tokenizer):
        raise InputError(f"The verifier head in {folder!r} has another tokenizer than π_SFT: {difference}.")
    return model.eval().requires_grad_(False)


def _architectures(folder: str) -> list[str]:
    path = Path(folder) / "config.json"
    return list(json.loads(path.read_text(encoding="utf-8")).get("architectures") or []) if path.is_file() else []


def response_scores(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The head's output for each row, at its last acted token.

    Args:
        model: from :func:`build_verifier_head`.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.

    Returns:
        [B] float32; the difference of two is the logit of the probability that the first response is preferred.
    """
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)
    hidden = transformers_model(model).base_model(input_ids=tokens, use_cache=False).last_hidden_state
    last_hidden = hidden[torch.arange(len(tokens), device=tokens.device), last]
    scores: Tensor = model.get_submodule(HEAD)(last_hidden)
    return scores.squeeze(-1).float()


@torch.no_grad()
def score_responses(model: nn.Module, tokens: Tensor, mask: Tensor, *, token_budget: int | None = None) -> Tensor:
    """:func:`response_scores` in micro-batches and without gradients: [B] float32 on the device of ``tokens``."""
    scores = torch.zeros(len(tokens), device=tokens.device)
    device = model_device(model)
    for rows, part_tokens, part_mask in parts_by_length(tokens, mask, token_budget or TOKEN_BUDGET):
        part = response_scores(model, part_tokens.to(device), part_mask.to(device))
        scores[rows.to(scores.device)] = part.to(scores.device)
    return scores
