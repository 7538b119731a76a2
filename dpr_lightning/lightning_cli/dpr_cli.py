"""``dpr fit|validate|test|predict``: LightningCLI, with checks of paths and options, resuming, and plain errors."""

import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dpr_lightning.callbacks.run_ends import limit_time_of_process
from dpr_lightning.data import PolicyDataModule
from dpr_lightning.errors import REQUEUE, InputError, TryAgain, causes
from dpr_lightning.lightning_cli.averages import check_averages
from dpr_lightning.lightning_cli.configs import config_files
from dpr_lightning.lightning_cli.library_errors import refusal
from dpr_lightning.lightning_cli.monitors import check_monitors
from dpr_lightning.lightning_cli.option_names import with_full_names
from dpr_lightning.lightning_cli.path_checks import protected
from dpr_lightning.lightning_cli.resume import ANEW, evaluate_from, report_replaced_tables, resume_from, what_is_saved
from dpr_lightning.lightning_cli.run_defaults import ROOT, RunDefaults, RunParts, parts_of_run, settle_run
from dpr_lightning.lightning_cli.run_output import progress_options, quieten
from dpr_lightning.lightning_cli.run_paths import OWN_FOLDER, saves_config, separate_evaluation_logs, uses_of_run
from dpr_lightning.lightning_cli.run_record import log_record
from dpr_lightning.lightning_cli.trainer_options import check_trainer
from dpr_lightning.locking import is_first_rank
from dpr_lightning.modules.base import PolicyModule

log = logging.getLogger(__name__)


class ConfigDraft(NamedTuple):
    """A config that a command composed, read in the file's stead that it replaces once the run is accepted.

    Args:
        path: of the draft, which has the file's content and name.
        file: that the run has as its config.
        save: writes the file; called when every check before training has passed.
    """

    path: Path
    file: Path
    save: Callable[[], None]


class SaveConfigToGoOn(SaveConfigCallback):
    """Saves a config that resumes the run: without ``ckpt_path: none``, which would begin it anew."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        if config.get("ckpt_path") == ANEW:
            config = config.clone()
            config["ckpt_path"] = None
        super().__init__(parser, config, save_to_log_dir=False, **options)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it on rank 0 to the folder of a logger that has one for each run; else, of a training, to the run's.

        Loggers receive it too, with the command and the commit.
        """
        loggers = [logger for logger in trainer.loggers if isinstance(logger, OWN_FOLDER)]
        if not loggers and stage != "fit":
            return
        folder = Path((loggers[0].log_dir if loggers else None) or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        self.parser.save(self.config, path, skip_none=False, skip_validation=True, overwrite=True)
        log_record(trainer, self.config.as_dict())


class DprParser(LightningArgumentParser):
    """Parser of one command, whose ``--print_config`` and saved configs have the options that depend on others."""

    def dump(self, cfg: Namespace, *arguments: Any, **options: Any) -> str:
        """The config as text. Parsing has validated it: a second time would take an eighth of the start of a run."""
        if "run" in cfg:
            cfg = cfg.clone()
            settle_run(cfg, config_files(sys.argv[1:]))
        text: str = super().dump(cfg, *arguments, **{"skip_validation": True} | options)
        return text


class DprCLI(LightningCLI):
    """LightningCLI whose configs name module, data, strategy and callbacks by ``class_path``."""

    parts = RunParts([], [])
    """What the `run:` section stands for."""

    def __init__(self, *arguments: Any, draft: ConfigDraft | None = None, **options: Any) -> None:
        self.draft = draft
        self.config, self.subcommand = Namespace(), None  # where parsing fails
        with ExitStack() as self.locks:
            try:
                super().__init__(*arguments, **options)
            except InputError as error:
                config = self.config.get(str(self.subcommand))
                if config is None:
                    raise
                raise InputError(with_full_names(str(error), config.as_dict())) from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command that runs alone, with its arguments that are no options: parsers of all take longer to build."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == sys.argv[1]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; where there is a draft of its config, with that one."""
        if self.draft is None:
            super().parse_arguments(parser, args)
            return
        file = str(self.draft.file)
        self.config = parser.parse_args([str(self.draft.path) if each == file else each for each in sys.argv[1:]])

    def _parse_ckpt_path(self) -> None:
        """Take no hyper-parameters from a checkpoint: those of the command line are used."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the `run:` section."""
        parser.add_argument(
            "--run",
            type=RunDefaults | None,
            default=RunDefaults(),
            help="Loggers, checkpoints and samples of the run; null: it writes nothing.",
        )

    def before_instantiate_classes(self) -> None:
        """Add what the `run:` section stands for, check every path, and lock those that are written until the end."""
        config, files = self.config[self.subcommand], config_files(sys.argv[1:])
        check_trainer(config.get("trainer") or {}, str(self.subcommand))
        if settle_run(config, files) and is_first_rank():
            log.warning("`%s` is left out: the run is in %s.", ROOT, config[ROOT])
        separate_evaluation_logs(config, str(self.subcommand))
        options = config.as_dict()
        self.parts = parts_of_run(options, str(self.subcommand))
        if not saves_config(options):
            self.save_config_callback = None
        if self.parts.held_out_file is not None:
            options["data"]["init_args"]["held_out_file"] = self.parts.held_out_file
        uses = uses_of_run(options, str(self.subcommand), self.parts.entries())
        self.locks.enter_context(protected(uses, files))

    def instantiate_classes(self) -> None:
        """Create the classes that the config names, and check the policy of the module.

        Raises:
            InputError: Lightning refuses it, or the module does.
        """
        with self._explained(of_options=True):
            super().instantiate_classes()
        if self.parts.held_out_file is not None and isinstance(self.datamodule, PolicyDataModule):
            self.datamodule.held_out_file = self.parts.held_out_file
        if isinstance(self.model, PolicyModule):
            self.model.check_policy()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Create the trainer, with the callbacks and loggers of the `run:` section, and its output."""
        trainer = self.config_init[self.subcommand]["trainer"]
        added = self.parts.trainer_options(trainer)
        added |= progress_options({**trainer, **added})
        return super().instantiate_trainer(**added, **options)

    @contextmanager
    def _explained(self, *, of_options: bool = False) -> Iterator[None]:
        """Within, turn an error that a library raises because of an option into an InputError that names the option."""
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
        """Run the command; where Ctrl-C or a signal ends it at once, name the checkpoint that it can go on from.

        Raises:
            KeyboardInterrupt: with that name in its message.
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
        """Set the checkpoint of an evaluation: for one in shards, the weights gathered from it."""
        config = self.config_init[self.subcommand]
        config["ckpt_path"] = evaluate_from(self.trainer, self.model, config.get("ckpt_path"))

    before_test = before_predict = before_validate

    def before_fit(self) -> None:
        """Check the callbacks, and set the checkpoint to resume from; time limits count from the process's start."""
        limit_time_of_process(self.trainer, saved_at_stop=False)
        check_monitors(self.trainer, self.model, self.datamodule)
        check_averages(self.trainer)
        config = self.config_init["fit"]
        config["ckpt_path"] = resume_from(self.trainer, config.get("ckpt_path"), self.config["fit"].as_dict())
        if config["ckpt_path"] is None:
            report_replaced_tables(self.trainer)
        if self.draft is not None:
            self.draft.save()


@contextmanager
def _as_argv(arguments: Sequence[str]) -> Iterator[None]:
    """Within, sys.argv has the arguments: LightningCLI reads them there, and starts further ranks with them."""
    quieten()
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def run_lightning(arguments: Sequence[str], draft: ConfigDraft | None = None) -> Any:
    """Run one LightningCLI command.

    Args:
        arguments: its name and options.
        draft: of the config that they name, for ``fit``.
    """
    try:
        with _as_argv(arguments):
            return _cli(draft=draft)
    except pickle.UnpicklingError as error:  # only Lightning's own loading comes here
        raise InputError(
            "The checkpoint has more than tensors, numbers and text, and loading that would run code from the file. If "
            "you trust it, add `--weights_only false`."
        ) from error


class _ConfigReader(DprCLI):
    """Parses the config of a command, without creating its classes or running it."""

    def before_instantiate_classes(self) -> None:
        """Skip the checks."""

    def instantiate_classes(self) -> None:
        """Create no classes."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run no command."""


def parse_lightning(arguments: Sequence[str]) -> dict[str, Any]:
    """All options of a LightningCLI command, with the defaults of those that are left out."""
    with _as_argv(arguments):
        config: dict[str, Any] = _cli(_ConfigReader).config[arguments[0]].as_dict()
    return config


def _cli(kind: type[DprCLI] = DprCLI, draft: ConfigDraft | None = None) -> DprCLI:
    quiet = {"exit_on_error": False}
    return kind(
        LightningModule,
        LightningDataModule,
        draft=draft,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        parser_class=DprParser,
        save_config_callback=SaveConfigToGoOn,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        # Parsing raises its errors, so that one line is printed instead of the whole usage.
        parser_kwargs={
            "prog": "dpr",
            "allow_abbrev": False,
            **quiet,
            sys.argv[1]: quiet,
        },
    )
