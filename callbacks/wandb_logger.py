"""A Weights & Biases logger that never ends a run, and that goes on with it."""

import logging
import netrc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning import Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers

log = logging.getLogger(__name__)


class WandbLogger(loggers.WandbLogger):
    """As Lightning's; where the service does not answer or has no key, the run is logged on this machine instead.

    Args:
        init_timeout: seconds for which the service is waited for.
        offline: whether the run is logged to files on this machine. None: unless a key of the service is set up.
        arguments: of :class:`lightning.pytorch.loggers.WandbLogger`.
    """

    def __init__(self, init_timeout: float = 90.0, offline: bool | None = None, **arguments: Any) -> None:
        import wandb

        self._lacks_key = offline is None and not _is_set_up()
        # LightningCLI fills in every option of `wandb.init`; `resume: None` would replace Lightning's "allow".
        arguments = {name: value for name, value in arguments.items() if value is not None}
        settings = wandb.Settings(init_timeout=init_timeout, silent=True)
        super().__init__(settings=settings, offline=offline or self._lacks_key, **arguments)
        del self._wandb_init["anonymous"]  # wandb warns of it, whatever its value
        if self._offline:
            self._wandb_init["mode"] = "offline"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of wandb, begun when it is first used."""
        begins = self._experiment is None
        run = self._begun()
        if begins and self._lacks_key:
            log.warning(
                "Weights & Biases has no key on this machine: metrics are logged to %s. `wandb login` and `wandb sync` "
                "send them, `run.wandb: off` leaves them out.",
                Path(self.save_dir or ".") / "wandb",
            )
        elif begins and not run.offline and run.url:
            log.warning("Weights & Biases: %s", run.url)
        return run

    def _begun(self) -> Any:
        import wandb

        try:
            with _no_launch_client():
                return super().experiment
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if self._offline:
                raise
            reason = str(error).strip().splitlines()[0]
            if isinstance(error, wandb.errors.CommError):
                log.warning(
                    "Weights & Biases cannot be reached (%s). The run is kept in %s; `wandb sync` sends it later.",
                    reason,
                    self.save_dir,
                )
            else:
                log.warning(
                    "Weights & Biases cannot be used (%s) The run is logged in %s; `wandb login` and `wandb sync` send "
                    "it later. `offline: true` of the logger, or WANDB_MODE=offline, asks for this.",
                    reason,
                    self.save_dir,
                )
            self._offline = True
            self._wandb_init["mode"] = "offline"
            return super().experiment


@contextmanager
def _no_launch_client() -> Iterator[None]:
    """Within, a run that begins does not look for inputs that a script has declared to W&B Launch.

    To look, wandb imports the client of Launch, for a second of CPU time at the start of every run. Inputs can only
    have been declared where that client is imported already, and there the run looks for them.
    """
    from wandb.sdk.wandb_run import Run

    name = "_detect_and_apply_job_inputs"
    original = vars(Run).get(name)
    if original is None or "wandb.sdk.launch.inputs.internal" in sys.modules:
        yield
        return
    setattr(Run, name, lambda run: None)
    try:
        yield
    finally:
        setattr(Run, name, original)


def _is_set_up() -> bool:
    """Whether there is a key for the service, as ``wandb login`` or WANDB_API_KEY leave one, or wandb needs none.

    It needs none where WANDB_MODE, or its settings, say that it is offline or disabled.
    """
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_MODE", "online") != "online" or settings.mode != "online":
        return True
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    try:
        entries = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool({urlsplit(settings.base_url).netloc, "api.wandb.ai"} & set(entries))


def wandb_run_ids(trainer: Trainer) -> list[str | None]:
    """The runs of all Weights & Biases loggers, for a checkpoint; None of one that has not begun."""
    return [logger.version for logger in _wandb_loggers(trainer)]


def continue_wandb_runs(trainer: Trainer, ids: Sequence[str | None]) -> None:
    """Have each Weights & Biases logger go on with the run that a checkpoint names, unless its options name one.

    Args:
        trainer: whose loggers have not begun.
        ids: from :func:`wandb_run_ids`.
    """
    for logger, identifier in zip(_wandb_loggers(trainer), ids, strict=False):
        if identifier is not None and logger.version is None:
            logger._wandb_init["id"] = logger._id = identifier


def _wandb_loggers(trainer: Trainer) -> list[loggers.WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, loggers.WandbLogger)]
