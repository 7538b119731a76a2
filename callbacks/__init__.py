"""Plug-ins named in configs. Nothing in the package imports them."""

from dpr_lightning.callbacks.best_policy import BestPolicy
from dpr_lightning.callbacks.generation_evaluation import GenerationEvaluation
from dpr_lightning.callbacks.harness_evaluation import HarnessEvaluation
from dpr_lightning.callbacks.held_out_reward import HeldOutReward
from dpr_lightning.callbacks.micro_batch_halving import MicroBatchHalving
from dpr_lightning.callbacks.reference_checkpoints import ReferenceCheckpoints
from dpr_lightning.callbacks.resumable_checkpoints import ResumableCheckpoints
from dpr_lightning.callbacks.rollout_samples import RolloutSamples
from dpr_lightning.callbacks.run_manifest_file import RunManifestFile
from dpr_lightning.callbacks.training_progress import ProgressLines, TrainingBar
from dpr_lightning.callbacks.validate_at_ends import ValidateAtEnds
from dpr_lightning.callbacks.wandb_logger import WandbLogger

__all__ = [
    "BestPolicy",
    "GenerationEvaluation",
    "HarnessEvaluation",
    "HeldOutReward",
    "MicroBatchHalving",
    "ProgressLines",
    "ReferenceCheckpoints",
    "ResumableCheckpoints",
    "RolloutSamples",
    "RunManifestFile",
    "TrainingBar",
    "ValidateAtEnds",
    "WandbLogger",
]
