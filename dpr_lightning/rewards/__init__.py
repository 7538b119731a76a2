"""Dense token rewards recovered from the checkpoints of an SFT run."""

from dpr_lightning.functional.reward_forms import RewardTerms, reward_form
from dpr_lightning.rewards.dense_reward import SFT, DenseReward
from dpr_lightning.rewards.forms import reward_of_logprobs, token_rewards
from dpr_lightning.rewards.optimum import decode_time_optimum
from dpr_lightning.rewards.reward_spec import RewardSpec

__all__ = [
    "SFT",
    "DenseReward",
    "RewardSpec",
    "RewardTerms",
    "decode_time_optimum",
    "reward_form",
    "reward_of_logprobs",
    "token_rewards",
]
