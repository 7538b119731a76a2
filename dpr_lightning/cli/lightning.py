"""``dpr fit|validate|test|predict``: LightningCLI, with its traps taken out."""

import logging
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dpr_lightning.callbacks.run_ends import limit_time_of_process
from dpr_lightning.cli.averages import check_averages
from dpr_lightning.cli.configs import config_files
from dpr_lightning.cli.library_errors import refusal
from dpr_lightning.cli.monitors import check_monitors
from dpr_lightning.cli.option_names import with_full_names
from dpr_lightning.cli.path_checks import protected
from dpr_lightning.cli.resume import ANEW, evaluate_from, report_replaced_tables, resume_from, what_is_saved
from dpr_lightning.cli.run_paths import separate_evaluation_logs, uses_of_run
from dpr_lightning.cli.trainer_options import check_trainer
from dpr_lightning.errors import REQUEUE, InputError, TryAgain, causes
from dpr_lightning.modules.base import PolicyModule

log = logging.getLogger(__name__)
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


class SaveConfigToGoOn(SaveConfigCallback):
    """Saves a config with which the run goes on: without ``ckpt_path: none``, by which it began anew."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        if config.get("ckpt_path") == ANEW:
            config = config.clone()
            config["ckpt_path"] = None
        super().__init__(parser, config, **options)


class DprCLI(LightningCLI):
    """Reads configs; ``class_path`` in them picks module, data, strategy and callbacks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with ExitStack() as self.locks:
            try:
                super().__init__(*arguments, **options)
            except InputError as error:
                config = getattr(self, "config", {}).get(getattr(self, "subcommand", ""))
                if config is None:
                    raise
                raise InputError(with_full_names(str(error), config.as_dict())) from error

    def _parse_ckpt_path(self) -> None:
        """Leave hyper-parameters alone: what the command line says wins over what a checkpoint remembers."""

    def before_instantiate_classes(self) -> None:
        """Check every path, and lock what is written until the command ends."""
        config = self.config[self.subcommand]
        check_trainer(config.get("trainer") or {}, str(self.subcommand))
        separate_evaluation_logs(config, str(self.subcommand))
        uses = uses_of_run(config.as_dict(), str(self.subcommand))
        self.locks.enter_context(protected(uses, config_files(sys.argv)))

    def instantiate_classes(self) -> None:
        """Make what the config names; what Lightning refuses is a wrong option, and so is an impossible policy.

        Raises:
            InputError: Lightning refuses it, or the module does.
        """
        with self._explained(of_options=True):
            super().instantiate_classes()
        if isinstance(self.model, PolicyModule):
            self.model.check_policy()

    @contextmanager
    def _explained(self, *, of_options: bool = False) -> Iterator[None]:
        """Within, what a library refuses because of an option is raised as an InputError that names the option."""
        try:
            yield
        except Exception as error:
            if any(isinstance(cause, (InputError, TryAgain)) for cause in causes(error)):
                raise
            message = refusal(error, self.config[self.subcommand].as_dict(), of_options=of_options)
            if message is None:
                raise
            raise InputError(message) from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; where Ctrl-C or a signal ends it at once, say what there is to go on from.

        Raises:
            KeyboardInterrupt: with that as its message.
        """
        try:
            with self._explained():
                super()._run_subcommand(subcommand)
        except SIGTERMException:  # Lightning's handler, before training begins or without ResumableCheckpoints
            log.warning("Asked to stop. %s", what_is_saved(self.trainer))
            raise SystemExit(REQUEUE) from None
        except SystemExit as leaving:  # Lightning's answer to Ctrl-C
            if not any(isinstance(cause, KeyboardInterrupt) for cause in causes(leaving)):
                raise
            saved = f" {what_is_saved(self.trainer)}" if subcommand == "fit" else ""
            raise KeyboardInterrupt(f"stopped by Ctrl-C.{saved}") from None

    def before_validate(self) -> None:
        """Let weights in shards be evaluated without them."""
        config = self.config_init[self.subcommand]
        config["ckpt_path"] = evaluate_from(self.trainer, self.model, config.get("ckpt_path"))

    before_test = before_predict = before_validate

    def before_fit(self) -> None:
        """Find the checkpoint to go on from; limits of time count from the start of this process."""
        limit_time_of_process(self.trainer, saved_at_stop=False)
        check_monitors(self.trainer, self.model, self.datamodule)
        check_averages(self.trainer)
        config = self.config_init["fit"]
        config["ckpt_path"] = resume_from(self.trainer, config.get("ckpt_path"), self.config["fit"].as_dict())
        if config["ckpt_path"] is None:
            report_replaced_tables(self.trainer)


def _quieten() -> None:
    """Drop an advertisement, a deprecation inside Lightning, and a warning that is wrong where a run goes on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Of any folder that is not empty; `report_replaced_tables` says what is replaced.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")


@contextmanager
def _given(arguments: Sequence[str]) -> Iterator[None]:
    """LightningCLI wants its arguments in sys.argv and warns about any other way.

    Further ranks on this machine are started with the same program and arguments.
    """
    _quieten()
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def run_lightning(arguments: Sequence[str]) -> Any:
    """Run one LightningCLI command."""
    try:
        with _given(arguments):
            return _cli()
    except pickle.UnpicklingError as error:  # only Lightning's own loading comes here
        raise InputError(
            "The checkpoint holds more than tensors, numbers and text, and loading that would run what it says. If you "
            "trust it, add `--weights_only false`."
        ) from error


class _ConfigReader(DprCLI):
    """Reads configs, and makes nothing of them."""

    def before_instantiate_classes(self) -> None:
        """Nothing."""

    def instantiate_classes(self) -> None:
        """Nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def parse_lightning(arguments: Sequence[str]) -> dict[str, Any]:
    """What a LightningCLI command would be asked to do: all options, with the defaults of those that were left out."""
    with _given(arguments):
        held: dict[str, Any] = _cli(_ConfigReader).config[arguments[0]].as_dict()
    return held


def _cli(kind: type[DprCLI] = DprCLI) -> DprCLI:
    quiet = {"exit_on_error": False}
    return kind(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        save_config_callback=SaveConfigToGoOn,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        seed_everything_default=0,
        # Errors of parsing come as exceptions, so that one line is printed and not the whole usage.
        parser_kwargs={
            "prog": "dpr",
            "allow_abbrev": False,
            **quiet,
            **{command: quiet for command in LIGHTNING_COMMANDS},
        },
    )
