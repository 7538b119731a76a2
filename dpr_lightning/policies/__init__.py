"""A policy: its description as data, and how it becomes a model, a frozen copy or a folder."""

from dpr_lightning.policies.attention import autocasts, multiplies_bfloat16
from dpr_lightning.policies.build import build_policy, check_policy
from dpr_lightning.policies.capabilities import Capabilities, capabilities_of
from dpr_lightning.policies.decoders import inside_of_adapters, is_known_decoder, is_silu
from dpr_lightning.policies.export import save_policy
from dpr_lightning.policies.forward import (
    ActionLogits,
    action_logits,
    disable_dropout,
    last_logits,
    logits_at,
    state_logits,
)
from dpr_lightning.policies.frozen import FrozenPolicies
from dpr_lightning.policies.fused_loss import ActedLoss, acted_loss
from dpr_lightning.policies.inputs import packs_rows
from dpr_lightning.policies.lightning_state import is_in_shards
from dpr_lightning.policies.lockstep import Lockstep
from dpr_lightning.policies.merging import (
    has_adapters,
    may_untie,
    merge_adapters,
    merged_weights,
    tied_names,
    untie,
    untied_names,
)
from dpr_lightning.policies.modes import evaluating, model_device
from dpr_lightning.policies.parts import micro_batches, parts_by_length
from dpr_lightning.policies.positions import check_positions, positions_of
from dpr_lightning.policies.prefixes import shares_prompts
from dpr_lightning.policies.router_loss import computes_router_loss, configured_coefficient, router_losses
from dpr_lightning.policies.scoring import (
    ActedStates,
    acted_logprobs,
    acted_states,
    default_token_budget,
    keeps_states,
    sequence_logprobs,
    token_budget_for,
)
from dpr_lightning.policies.sharding import (
    Weights,
    build_sharded,
    fetches_weights,
    gathered_weights,
    holds_whole,
    is_sharded,
    share_out,
    weight_bytes,
)
from dpr_lightning.policies.spec import AUTO, LoraSpec, PolicySpec
from dpr_lightning.policies.special_tokens import SpecialTokens, special_tokens
from dpr_lightning.policies.tokenizers import load_tokenizer
from dpr_lightning.policies.toy import character_tokenizer, create_toy_policy, word_tokenizer
from dpr_lightning.policies.verifier_head import (
    build_verifier_head,
    load_verifier_head,
    response_scores,
    score_responses,
)

__all__ = [
    "AUTO",
    "ActedLoss",
    "ActedStates",
    "ActionLogits",
    "Capabilities",
    "FrozenPolicies",
    "Lockstep",
    "LoraSpec",
    "PolicySpec",
    "SpecialTokens",
    "Weights",
    "acted_logprobs",
    "acted_loss",
    "acted_states",
    "action_logits",
    "autocasts",
    "build_policy",
    "build_sharded",
    "build_verifier_head",
    "capabilities_of",
    "character_tokenizer",
    "check_policy",
    "check_positions",
    "computes_router_loss",
    "configured_coefficient",
    "create_toy_policy",
    "default_token_budget",
    "disable_dropout",
    "evaluating",
    "fetches_weights",
    "gathered_weights",
    "has_adapters",
    "holds_whole",
    "inside_of_adapters",
    "is_in_shards",
    "is_known_decoder",
    "is_sharded",
    "is_silu",
    "keeps_states",
    "last_logits",
    "load_tokenizer",
    "load_verifier_head",
    "logits_at",
    "may_untie",
    "merge_adapters",
    "merged_weights",
    "micro_batches",
    "model_device",
    "multiplies_bfloat16",
    "packs_rows",
    "parts_by_length",
    "positions_of",
    "response_scores",
    "router_losses",
    "save_policy",
    "score_responses",
    "sequence_logprobs",
    "share_out",
    "shares_prompts",
    "special_tokens",
    "state_logits",
    "tied_names",
    "token_budget_for",
    "untie",
    "untied_names",
    "weight_bytes",
    "word_tokenizer",
]
