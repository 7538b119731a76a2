"""A Weights & Biases logger that never ends a run."""

import logging
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers

log = logging.getLogger(__name__)


class WandbLogger(loggers.WandbLogger):
    """As Lightning's; where the service does not answer, the run is logged on this machine instead.

    Args:
        init_timeout: seconds for which the service is waited for.
        arguments: of :class:`lightning.pytorch.loggers.WandbLogger`.
    """

    def __init__(self, init_timeout: float = 90.0, **arguments: Any) -> None:
        import wandb

        super().__init__(settings=wandb.Settings(init_timeout=init_timeout), **arguments)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of wandb, begun when it is first asked for."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError as error:
            if self._offline:
                raise
            log.warning(
                "Weights & Biases cannot be reached (%s). The run is kept in %s; `wandb sync` sends it later.",
                str(error).splitlines()[0],
                self.save_dir,
            )
            self._offline = True
            self._wandb_init["mode"] = "offline"
            return super().experiment
