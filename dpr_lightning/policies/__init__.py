"""Policies: their specification, and how they are built, frozen and saved."""

from dpr_lightning.engine import has_adapters
from dpr_lightning.policies.build import build_policy, check_policy
from dpr_lightning.policies.capabilities import Capabilities, capabilities_of
from dpr_lightning.policies.export import save_policy
from dpr_lightning.policies.frozen import FrozenPolicies
from dpr_lightning.policies.lightning_state import is_in_shards
from dpr_lightning.policies.merging import (
    may_untie,
    merge_adapters,
    merged_weights,
    tied_names,
    untie,
    untied_names,
)
from dpr_lightning.policies.policy_spec import AUTO, LoraSpec, PolicySpec
from dpr_lightning.policies.policy_strategy import PolicyStrategy, as_policy_strategy
from dpr_lightning.policies.router_loss import computes_router_loss, configured_coefficient, router_losses
from dpr_lightning.policies.sharding import Weights, build_sharded, distribute, gathered_weights, holds_whole
from dpr_lightning.policies.special_tokens import SpecialTokens, special_tokens
from dpr_lightning.policies.tokenizers import load_tokenizer
from dpr_lightning.policies.toy_policy import character_tokenizer, create_toy_policy, word_tokenizer
from dpr_lightning.policies.verifier_model import (
    build_verifier_head,
    load_verifier_head,
    response_scores,
    score_responses,
)

__all__ = [
    "AUTO",
    "Capabilities",
    "FrozenPolicies",
    "LoraSpec",
    "PolicySpec",
    "PolicyStrategy",
    "SpecialTokens",
    "Weights",
    "as_policy_strategy",
    "build_policy",
    "build_sharded",
    "build_verifier_head",
    "capabilities_of",
    "character_tokenizer",
    "check_policy",
    "computes_router_loss",
    "configured_coefficient",
    "create_toy_policy",
    "distribute",
    "gathered_weights",
    "has_adapters",
    "holds_whole",
    "is_in_shards",
    "load_tokenizer",
    "load_verifier_head",
    "may_untie",
    "merge_adapters",
    "merged_weights",
    "response_scores",
    "router_losses",
    "save_policy",
    "score_responses",
    "special_tokens",
    "tied_names",
    "untie",
    "untied_names",
    "word_tokenizer",
]
