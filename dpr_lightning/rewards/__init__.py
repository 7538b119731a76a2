"""Dense token rewards recovered from the checkpoints of an SFT run."""

from dpr_lightning.functional.reward_forms import RewardTerms, reward_form
from dpr_lightning.rewards.dense_reward import SFT, DenseReward
from dpr_lightning.rewards.forms import reward_of_logprobs, token_rewards
from dpr_lightning.rewards.head_scorer import HeadScorer
from dpr_lightning.rewards.optimum import decode_time_optimum
from dpr_lightning.rewards.outcome_scorer import OutcomeScorer, ScorerSpec, load_scorer
from dpr_lightning.rewards.policy_scorer import PolicyScorer
from dpr_lightning.rewards.reward_spec import RewardSpec

__all__ = [
    "SFT",
    "DenseReward",
    "HeadScorer",
    "OutcomeScorer",
    "PolicyScorer",
    "RewardSpec",
    "RewardTerms",
    "ScorerSpec",
    "decode_time_optimum",
    "load_scorer",
    "reward_form",
    "reward_of_logprobs",
    "token_rewards",
]
