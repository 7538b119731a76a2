"""The module whose own loss ``dpr plan`` counts."""

from typing import Any

from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from dpr_lightning.errors import InputError
from dpr_lightning.modules.rollout_algorithm import RolloutAlgorithm


def algorithm_to_count(model: dict[str, Any]) -> RolloutAlgorithm:
    """The module of the config, without a policy.

    Raises:
        InputError: it is no rollout algorithm, or one with its own ``score``.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    algorithm = parser.instantiate_classes(parser.parse_object({"model": model})).model
    if not isinstance(algorithm, RolloutAlgorithm) or type(algorithm).score is not RolloutAlgorithm.score:
        raise InputError(
            "`dpr plan` counts for SupervisedIRL, DensePathReinforce and rollout algorithms that do not override "
            f"`score`; this config trains {type(algorithm).__name__}. A short run measures it: `dpr fit` with these "
            "arguments and `--trainer.max_steps 2`."
        )
    return algorithm
