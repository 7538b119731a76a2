"""The LightningModules. They wire; the mathematics is in ``functional``."""

from dpr_lightning.modules.advantages import CreditSpec, estimate_advantages
from dpr_lightning.modules.dpr import DensePathReinforce, KLSpec
from dpr_lightning.modules.hypo import HybridPreference
from dpr_lightning.modules.noise_robust import GCESpec, TrimSpec
from dpr_lightning.modules.rebel import RelativeRewardRegression, RewardWeights
from dpr_lightning.modules.rollout_algorithm import RolloutAlgorithm, ScoredPart
from dpr_lightning.modules.schedule import ScheduleSpec
from dpr_lightning.modules.self_play import SelfPlay
from dpr_lightning.modules.sft import IQLearnSpec, SupervisedIRL
from dpr_lightning.modules.verifier_head import VerifierHead

__all__ = [
    "CreditSpec",
    "DensePathReinforce",
    "GCESpec",
    "HybridPreference",
    "IQLearnSpec",
    "KLSpec",
    "RelativeRewardRegression",
    "RewardWeights",
    "RolloutAlgorithm",
    "ScheduleSpec",
    "ScoredPart",
    "SelfPlay",
    "SupervisedIRL",
    "TrimSpec",
    "VerifierHead",
    "estimate_advantages",
]
