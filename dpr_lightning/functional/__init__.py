"""The mathematics: pure batched functions of tensors, each with its equation and its source.

float64 in, float64 out; half precision is raised to float32. ``mask`` is True where the policy acted, EOS included, and
nothing outside it, NaN included, reaches a value or a gradient. ``logits[b, t]`` predicts ``tokens[b, t]``.
"""

from dpr_lightning.functional.baselines import (
    SumOverRanks,
    batch_baseline,
    leave_one_out_baseline,
    position_baseline,
    response_baseline,
    whiten,
)
from dpr_lightning.functional.imitation import ValueForm, dft_loss, gce_loss, iq_learn_loss, is_trimmed, sft_loss
from dpr_lightning.functional.importance import truncated_importance
from dpr_lightning.functional.logprobs import (
    entropy,
    kl_divergence,
    token_logprobs,
    token_logprobs_and_normaliser,
)
from dpr_lightning.functional.masking import action_positions, masked_mean, masked_sum, next_action
from dpr_lightning.functional.online_kl import reverse_kl_loss
from dpr_lightning.functional.policy_gradient import (
    all_actions_loss,
    bound_unlikelihood,
    clipped_surrogate_loss,
    reinforce_loss,
)
from dpr_lightning.functional.relative import relative_reward_loss, win_rates
from dpr_lightning.functional.returns import returns_to_go, shape_reward
from dpr_lightning.functional.reward_forms import (
    FORMS,
    dense_reward_form,
    mixed_dense_reward,
)
from dpr_lightning.functional.self_play_losses import SelfPlayLoss, self_play_loss
from dpr_lightning.functional.token_rewards import (
    ReferenceReduction,
    baseline_relative_reward,
    check_finite_rewards,
    clip_reward,
    length_normalise,
    reference_baseline,
    zscore_by_position,
)

__all__ = [
    "FORMS",
    "ReferenceReduction",
    "SelfPlayLoss",
    "SumOverRanks",
    "ValueForm",
    "action_positions",
    "all_actions_loss",
    "baseline_relative_reward",
    "batch_baseline",
    "bound_unlikelihood",
    "check_finite_rewards",
    "clip_reward",
    "clipped_surrogate_loss",
    "dense_reward_form",
    "dft_loss",
    "entropy",
    "gce_loss",
    "iq_learn_loss",
    "is_trimmed",
    "kl_divergence",
    "leave_one_out_baseline",
    "length_normalise",
    "masked_mean",
    "masked_sum",
    "mixed_dense_reward",
    "next_action",
    "position_baseline",
    "reference_baseline",
    "reinforce_loss",
    "relative_reward_loss",
    "response_baseline",
    "returns_to_go",
    "reverse_kl_loss",
    "self_play_loss",
    "sft_loss",
    "shape_reward",
    "token_logprobs",
    "token_logprobs_and_normaliser",
    "truncated_importance",
    "whiten",
    "win_rates",
    "zscore_by_position",
]
