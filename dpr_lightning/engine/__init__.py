"""Speed and memory: log-probabilities and losses of tokens, on plain Hugging Face modules and tensors."""

from dpr_lightning.engine.forward import (
    ActionLogits,
    action_logits,
    disable_dropout,
    sampled_logits,
    state_logits,
)
from dpr_lightning.engine.fused_head import Part
from dpr_lightning.engine.half_precision import multiplies_bfloat16
from dpr_lightning.engine.known_decoders import has_adapters, inside_of_adapters
from dpr_lightning.engine.lockstep import Lockstep
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
)
from dpr_lightning.engine.shared_prompts import shares_prompts
from dpr_lightning.engine.training_loss import acted_loss
from dpr_lightning.engine.weight_shards import fetches_weights, is_sharded, weight_bytes

__all__ = [
    "ActedStates",
    "ActionLogits",
    "Lockstep",
    "Part",
    "acted_logprobs",
    "acted_loss",
    "acted_states",
    "action_logits",
    "check_positions",
    "default_token_budget",
    "disable_dropout",
    "evaluating",
    "fetches_weights",
    "has_adapters",
    "inside_of_adapters",
    "is_sharded",
    "keeps_states",
    "longest_row",
    "micro_batches",
    "model_device",
    "multiplies_bfloat16",
    "parts_by_length",
    "positions_of",
    "sampled_logits",
    "scored_actions",
    "sequence_logprobs",
    "shares_prompts",
    "state_logits",
    "weight_bytes",
]
