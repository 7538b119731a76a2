"""Writes ``run.json``, from which later commands take the policy, its references and its data."""

import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from lightning import Callback, LightningModule, Trainer

from dpr_lightning.callbacks.reference_checkpoints import ReferenceCheckpoints
from dpr_lightning.data import PolicyDataModule
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.modules.base import PolicyModule
from dpr_lightning.paths import Writes
from dpr_lightning.policies import PolicySpec
from dpr_lightning.run_manifest import MARK, STEPS, add_to_stage, map_paths, record_stage
from dpr_lightning.trainer_attributes import callbacks_of, datamodule_of, is_trial

LIBRARIES = ("dpr-lightning", "torch", "lightning", "transformers")


class RunManifestFile(Callback):
    """Writes the entry of this run's stage before the first step, once the data are read.

    Args:
        path: of ``run.json``; stages of one run share it.
        verifier: name, or ``module:function``, of what scores answers, for later commands.

    Raises:
        InputError: there is no such verifier.
    """

    def __init__(
        self, path: Annotated[str, Writes(marks=(f'"{MARK}"',), shared=True)], verifier: str | None = None
    ) -> None:
        super().__init__()
        if verifier is not None:
            load_verifier(verifier)  # a misspelt name ends the run before it trains, not the commands after it
        self.path = Path(path)
        self.verifier = verifier

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, on rank 0."""
        data = datamodule_of(trainer)
        if not trainer.is_global_zero or is_trial(trainer) or not isinstance(pl_module, PolicyModule):
            return
        saved = next((each for each in callbacks_of(trainer) if isinstance(each, ReferenceCheckpoints)), None)
        entry: dict[str, Any] = {
            "module": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "policy": _changed(pl_module.policy_spec),
            "policies": None if saved is None else str(saved.folder),
            "verifier": self.verifier,
        }
        if isinstance(data, PolicyDataModule):
            entry |= _plain(data.manifest_entry())
        record_stage(
            self.path,
            pl_module.stage,
            {
                **entry,
                "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                "folder": str(Path.cwd()),
                "versions": {library: version(library) for library in LIBRARIES},
            },
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the number of optimizer steps, on rank 0: EarlyStopping may have ended the run before its last one."""
        if trainer.is_global_zero and not is_trial(trainer) and isinstance(pl_module, PolicyModule):
            add_to_stage(self.path, pl_module.stage, {STEPS: trainer.global_step})


def _changed(spec: PolicySpec) -> dict[str, Any]:
    """The fields of a policy that are not those by default, with the paths among them absolute."""
    default, changed = PolicySpec(source="").to_dict(), spec.to_dict()
    return {name: _absolute(value) for name, value in changed.items() if value != default[name]}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the paths of its rows absolute."""
    return {name: map_paths(_absolute, value) if name != "columns" else value for name, value in entry.items()}


def _absolute(path: Any) -> Any:
    """A path that exists, absolute; a name of the hub or a pattern stays."""
    return (
        str(Path(path).expanduser().resolve()) if isinstance(path, str) and Path(path).expanduser().exists() else path
    )
