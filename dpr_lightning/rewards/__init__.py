"""Dense token rewards recovered from the checkpoints of an SFT run."""

from dpr_lightning.rewards.dense_reward import SFT, ActionScores, DenseReward
from dpr_lightning.rewards.forms import token_rewards
from dpr_lightning.rewards.spec import FORMS, RewardSpec

__all__ = ["FORMS", "SFT", "ActionScores", "DenseReward", "RewardSpec", "token_rewards"]
