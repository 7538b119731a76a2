"""Dense rewards recovered from demonstrations, and the reinforcement learning that uses them.

The names below are imported when they are first used, so that ``import dpr_lightning`` waits for no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpr_lightning.callbacks import GenerationEvaluation as GenerationEvaluation
    from dpr_lightning.callbacks import HeldOutReward as HeldOutReward
    from dpr_lightning.callbacks import ReferenceCheckpoints as ReferenceCheckpoints
    from dpr_lightning.callbacks import ResumableCheckpoints as ResumableCheckpoints
    from dpr_lightning.callbacks import RolloutSamples as RolloutSamples
    from dpr_lightning.callbacks import RunManifestFile as RunManifestFile
    from dpr_lightning.data import DemonstrationDataModule as DemonstrationDataModule
    from dpr_lightning.data import HybridDataModule as HybridDataModule
    from dpr_lightning.data import PreferenceDataModule as PreferenceDataModule
    from dpr_lightning.data import RewardDataModule as RewardDataModule
    from dpr_lightning.data import SelfPlayDataModule as SelfPlayDataModule
    from dpr_lightning.data import TextReward
    from dpr_lightning.errors import InputError as InputError
    from dpr_lightning.modules import CreditSpec as CreditSpec
    from dpr_lightning.modules import DensePathReinforce as DensePathReinforce
    from dpr_lightning.modules import GCESpec as GCESpec
    from dpr_lightning.modules import HybridPreference as HybridPreference
    from dpr_lightning.modules import IQLearnSpec as IQLearnSpec
    from dpr_lightning.modules import KLSpec as KLSpec
    from dpr_lightning.modules import RelativeRewardRegression as RelativeRewardRegression
    from dpr_lightning.modules import RewardWeights as RewardWeights
    from dpr_lightning.modules import ScheduleSpec as ScheduleSpec
    from dpr_lightning.modules import SelfPlay as SelfPlay
    from dpr_lightning.modules import SupervisedIRL as SupervisedIRL
    from dpr_lightning.modules import TrimSpec as TrimSpec
    from dpr_lightning.modules import VerifierHead as VerifierHead
    from dpr_lightning.policies import LoraSpec as LoraSpec
    from dpr_lightning.policies import PolicySpec as PolicySpec
    from dpr_lightning.policies import save_policy as save_policy
    from dpr_lightning.rewards import RewardSpec as RewardSpec
    from dpr_lightning.rollouts import SamplingOptions as SamplingOptions
    from dpr_lightning.run_manifest import RunManifest as RunManifest

    DenseReward = TextReward

_NAMES = {
    "callbacks": (
        *("GenerationEvaluation", "HeldOutReward", "ReferenceCheckpoints", "ResumableCheckpoints", "RolloutSamples"),
        "RunManifestFile",
    ),
    "data": (
        *("DemonstrationDataModule", "HybridDataModule", "PreferenceDataModule", "RewardDataModule"),
        "SelfPlayDataModule",
    ),
    "errors": ("InputError",),
    "modules": (
        *(
            "CreditSpec",
            "DensePathReinforce",
            "GCESpec",
            "IQLearnSpec",
            "KLSpec",
            "ScheduleSpec",
            "SelfPlay",
            "SupervisedIRL",
        ),
        *("HybridPreference", "RelativeRewardRegression", "RewardWeights", "TrimSpec", "VerifierHead"),
    ),
    "policies": ("LoraSpec", "PolicySpec", "save_policy"),
    "rewards": ("RewardSpec",),
    "rollouts": ("SamplingOptions",),
    "run_manifest": ("RunManifest",),
}
"""Folder or module of each name."""
_SOURCES = {name: (source, name) for source, names in _NAMES.items() for name in names}
_SOURCES["DenseReward"] = ("data", "TextReward")

__all__ = sorted(_SOURCES)


def __getattr__(name: str) -> Any:
    """Called for a name that is not here yet: import it."""
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    source, original = _SOURCES[name]
    value = globals()[name] = getattr(import_module(f"{__name__}.{source}"), original)
    return value


def __dir__() -> list[str]:
    """Every name that can be imported from here."""
    return sorted({*globals(), *_SOURCES})
