"""Checkpoints on disk: whole or not there at all, with checksums, the newest first."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpr_lightning.folders import delete_written, flush, recover, replace_folder

log = logging.getLogger(__name__)
MANIFEST, STATE = "manifest.json", "state.ckpt"


class CheckpointStore:
    """The checkpoints of one run, a folder each: ``step_0000040/`` with the state and a manifest of checksums.

    A checkpoint is written under another name and renamed once it and its manifest are on the disk, so a folder with
    this name is whole, unless the disk damages it later; and that the checksums show.

    Args:
        folder: of the run's checkpoints.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def unfinished(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is being written."""
        return self.folder / f".{_name(step)}.unfinished"

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of ``step`` to; what an earlier attempt left is deleted."""
        unfinished = self.unfinished(step)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        return unfinished

    def finish(self, step: int, about: Mapping[str, Any]) -> Path:
        """Seal what was written since :meth:`begin`; it replaces an older checkpoint of that step.

        Args:
            step: optimizer steps taken.
            about: further entries of the manifest.
        """
        unfinished = self.unfinished(step)
        files = {str(path.relative_to(unfinished)): _describe(path) for path in _files(unfinished)}
        manifest = unfinished / MANIFEST
        manifest.write_text(json.dumps({"step": step, "files": files, **about}, indent=2) + "\n", encoding="utf-8")
        for path in (*_files(unfinished), *(path for path in unfinished.rglob("*") if path.is_dir()), unfinished):
            flush(path)
        whole = self.folder / _name(step)
        replace_folder(unfinished, whole, self._files_of(step))
        return whole

    def keep(self, steps: set[int]) -> None:
        """Delete every checkpoint but those of ``steps``, and whatever was left unfinished.

        Files that others put into a checkpoint's folder stay.
        """
        for step in self.steps():
            if step not in steps:
                self._delete(step)
        for path in self.folder.glob(".step_*.unfinished"):
            shutil.rmtree(path)

    def _delete(self, step: int) -> None:
        folder, files = self.folder / _name(step), self._files_of(step)
        if files is None:
            log.warning("The checkpoint %s has a manifest that cannot be read, and stays.", folder)
        elif not delete_written(folder, files):
            log.warning("%s is no checkpoint any more; what else is in it stays.", folder)

    def _files_of(self, step: int) -> list[str] | None:
        """The files of a checkpoint, relative to its folder; None where its manifest is missing or damaged."""
        try:
            return [*self.manifest(step)["files"], MANIFEST]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def steps(self) -> list[int]:
        """Steps of all checkpoints, the newest first."""
        numbers = (
            path.name.removeprefix("step_") for path in self.folder.glob("step_*") if (path / MANIFEST).is_file()
        )
        return sorted((int(step) for step in numbers if step.isdigit()), reverse=True)

    def manifest(self, step: int) -> dict[str, Any]:
        """What is known of a checkpoint."""
        manifest: dict[str, Any] = json.loads((self.folder / _name(step) / MANIFEST).read_text(encoding="utf-8"))
        return manifest

    def state(self, step: int) -> Path:
        """The part of a checkpoint that a trainer loads."""
        return self.folder / _name(step) / STATE

    def newest(self) -> int | None:
        """The step of the newest checkpoint that is as it was written; damaged ones are reported and passed over."""
        for previous in self.folder.glob(".step_*.previous"):
            recover(self.folder / previous.name.removeprefix(".").removesuffix(".previous"))
        for step in self.steps():
            fault = self.fault(step)
            if fault is None:
                return step
            log.warning(
                "The checkpoint %s is damaged (%s); going back to the one before.", self.folder / _name(step), fault
            )
        return None

    def fault(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None when nothing is."""
        folder = self.folder / _name(step)
        try:
            files = self.manifest(step)["files"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            return f"{MANIFEST} cannot be read"
        for name, described in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != described["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {described['bytes']}"
            if _describe(path) != described:
                return f"{name} does not match its checksum"
        return None


def _name(step: int) -> str:
    return f"step_{step:07d}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
