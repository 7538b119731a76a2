"""A policy that commands sample from and score with, without training it."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.policies.build import build_policy
from dpr_lightning.policies.policy_spec import Dtype, PolicySpec


def best_device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frozen_policy(folder: str, dtype: Dtype = "float32") -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A policy for inference, adapters merged, on the best device."""
    spec = PolicySpec(source=folder, dtype=dtype)
    model, tokenizer = build_policy(spec, trainable=False)
    return model.to(best_device()), tokenizer
