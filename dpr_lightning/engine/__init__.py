"""Speed and memory: log-probabilities and losses of tokens, on plain Hugging Face modules and tensors."""

from dpr_lightning.engine.attention_blocks import block_attention, rotate, signed_sine
from dpr_lightning.engine.forward import (
    ActionLogits,
    action_logits,
    disable_dropout,
    last_logits,
    logits_at,
    sampled_logits,
    state_logits,
)
from dpr_lightning.engine.fused_head import ActionValues, HeadLoss, TokenLoss, head_logprobs, head_loss
from dpr_lightning.engine.half_precision import autocasts, multiplies_bfloat16
from dpr_lightning.engine.known_decoders import has_adapters, inside_of_adapters, is_known_decoder, is_silu
from dpr_lightning.engine.lockstep import Lockstep
from dpr_lightning.engine.model_inputs import packs_rows
from dpr_lightning.engine.model_mode import evaluating, model_device
from dpr_lightning.engine.positions import check_positions, longest_row, positions_of
from dpr_lightning.engine.row_groups import micro_batches, parts_by_length
from dpr_lightning.engine.scoring import (
    ActedStates,
    acted_logprobs,
    acted_states,
    default_token_budget,
    keeps_states,
    scored_actions,
    sequence_logprobs,
    token_budget_for,
)
from dpr_lightning.engine.shared_prompts import shares_prompts
from dpr_lightning.engine.training_loss import ActedLoss, acted_loss
from dpr_lightning.engine.weight_shards import fetches_weights, is_sharded, weight_bytes

__all__ = [
    "ActedLoss",
    "ActedStates",
    "ActionLogits",
    "ActionValues",
    "HeadLoss",
    "Lockstep",
    "TokenLoss",
    "acted_logprobs",
    "acted_loss",
    "acted_states",
    "action_logits",
    "autocasts",
    "block_attention",
    "check_positions",
    "default_token_budget",
    "disable_dropout",
    "evaluating",
    "fetches_weights",
    "has_adapters",
    "head_logprobs",
    "head_loss",
    "inside_of_adapters",
    "is_known_decoder",
    "is_sharded",
    "is_silu",
    "keeps_states",
    "last_logits",
    "logits_at",
    "longest_row",
    "micro_batches",
    "model_device",
    "multiplies_bfloat16",
    "packs_rows",
    "parts_by_length",
    "positions_of",
    "rotate",
    "sampled_logits",
    "scored_actions",
    "sequence_logprobs",
    "shares_prompts",
    "signed_sine",
    "state_logits",
    "token_budget_for",
    "weight_bytes",
]
