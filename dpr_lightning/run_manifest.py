"""``run.json``: what later commands need to know of a run, so that ``--run FOLDER`` replaces a dozen options.

A manifest has one entry a stage: ``sft``, ``rl``, and others by the name of their module. Paths inside its folder are
relative to that, so that the folder can be moved; data files are absolute.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpr_lightning.errors import InputError
from dpr_lightning.folders import whole_file

MANIFEST, SFT_YAML = "run.json", "sft.yaml"
CHECK, PREVIEW, AUDIT = (Path("check") / name for name in ("check.json", "preview.json", "audit.json"))
"""Paths in a run's folder of what `dpr check` writes."""
AUDIT_OF_TRAINED = Path("audit") / "train.json"
"""Path there of what `dpr audit --rows train` writes."""
MARK = "dpr_lightning_run"
"""Key of the format's version, which is in every manifest."""
FINAL = "final"
FINISHED = "finished"
"""Key of the entry of SFT, once it has ended."""
STEPS = "steps"
"""Key of the number of optimizer steps in the entry of a stage that has ended."""
TRAINED = ("rl", "self_play", "sft")
"""Stages that end with a policy, the newest first."""
REFERENCE = 0.25
"""Share of the SFT run at which a single reference is saved: earlier ones did best (docs/results.md)."""


@dataclass(frozen=True)
class RunManifest:
    """A manifest that was read.

    Attributes:
        path: of the file.
        stages: entries by stage, as they are in the file.
    """

    path: Path
    stages: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, run: str | Path) -> "RunManifest":
        """Read the manifest of a run.

        Args:
            run: folder of the run, or of one of its stages; or the file.

        Raises:
            InputError: there is none, or it is not one.
        """
        folder = Path(run).expanduser()
        candidates = [folder] if folder.is_file() else [folder / MANIFEST, folder.parent / MANIFEST]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            reason = f"it has no {MANIFEST}" if folder.is_dir() else "there is no such folder"
            raise InputError(
                f"`run`: {run} is no folder of a run: {reason}. `dpr sft` and `dpr fit` write one; name the folder "
                "that was their `--output` or `trainer.default_root_dir`."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stages = content["stages"]
            valid = content[MARK] == 1 and all(isinstance(entry, dict) for entry in stages.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"`run`: {path} is no manifest of a run. Name another folder, or delete it.") from error
        if not valid:
            raise InputError(f"`run`: {path} is of another version of this package (it has version {content[MARK]}).")
        return cls(path, stages)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.path.parent

    @property
    def sft(self) -> str:
        """Folder of π_SFT.

        Raises:
            InputError: the run has no SFT, or it has not ended.
        """
        return self._final("sft")

    @property
    def references(self) -> dict[str, str]:
        """Folders of the earlier checkpoints of SFT by their share of the run, such as ``0.25``, in its order.

        Raises:
            InputError: there are none.
        """
        policies = self._policies("sft")
        saved: dict[str, float] = {}
        if (policies / "references.json").is_file():
            saved = json.loads((policies / "references.json").read_text(encoding="utf-8"))
        earlier = sorted((share, name) for name, share in saved.items() if share < 1 and (policies / name).is_dir())
        if not earlier:
            raise InputError(
                f"The SFT of {self.folder} saved no earlier policies in {policies}, and a dense reward is measured "
                "against one. Train again with `run.references`, such as [0.25, 0.5, 0.75]."
            )
        return {f"{share:.3g}": str(policies / name) for share, name in earlier}

    @property
    def reference_share(self) -> str:
        """The share of the run, among :attr:`references`, that is nearest to a quarter."""
        return min(self.references, key=lambda share: abs(float(share) - REFERENCE))

    @property
    def reference(self) -> str:
        """The folder of the reference nearest to a quarter of the run."""
        return self.references[self.reference_share]

    def reference_at(self, share: str) -> str:
        """The folder among :attr:`references` that was saved at a share of the run.

        Raises:
            InputError: there is none.
        """
        references = self.references
        if share not in references:
            raise InputError(f"The SFT of {self.folder} has no reference at {share}, but at {', '.join(references)}.")
        return references[share]

    @property
    def policy(self) -> str:
        """Folder of the newest policy: of reinforcement learning, where that has ended, else π_SFT."""
        for stage in TRAINED:
            if stage in self.stages and (self._policies(stage) / FINAL).is_dir():
                return self._final(stage)
        return self.sft

    @property
    def policy_options(self) -> dict[str, Any]:
        """Options of the policy that SFT trained, those by default aside."""
        return dict(self._entry("sft").get("policy") or {})

    @property
    def sft_config(self) -> Path:
        """The config that SFT ran with, all options resolved.

        Raises:
            InputError: there is none.
        """
        saved = self._policies("sft").parent / "config.yaml"
        candidates = (saved, self.folder / SFT_YAML)
        path = next((each for each in candidates if each.is_file()), None)
        if path is None:
            raise InputError(
                f"The SFT of {self.folder} has no config: there is neither {saved} nor {candidates[1]}, and its recipe "
                "is read there. Train again with `dpr sft`."
            )
        return path

    @property
    def sft_folder(self) -> Path:
        """The working directory of SFT, where relative paths of its config begin."""
        return Path(self._entry("sft").get("folder") or Path.cwd())

    @property
    def sft_steps(self) -> int:
        """Optimizer steps of SFT; of runs whose entry lacks them about as many, by the share of its last reference.

        Raises:
            InputError: there are no references either.
        """
        steps: int | None = self._entry("sft").get(STEPS)
        if steps is not None:
            return steps
        share, folder = max((float(share), folder) for share, folder in self.references.items())
        return max(1, round(int(Path(folder).name.removeprefix("step_")) / share))

    @property
    def train(self) -> Any:
        """The demonstrations that SFT learnt from, as option ``train`` of the DataModule.

        Raises:
            InputError: the run has no SFT.
        """
        return self._entry("sft").get("train")

    @property
    def held_out(self) -> Any:
        """The demonstrations that SFT did not learn from; None: there are none."""
        return self._inside(self._entry("sft").get("held_out"))

    @property
    def columns(self) -> dict[str, str] | None:
        """The data files' own names of our columns."""
        return self._entry("sft").get("columns")

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest demonstration allowed."""
        return self._entry("sft").get("max_length")

    @property
    def limit(self) -> int | None:
        """Number of the first rows of ``train`` that were read; None: all."""
        return self._entry("sft").get("limit")

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens of the longest demonstrated answer, or the length limit of reinforcement learning if higher."""
        limits = [self.stages[stage].get("max_new_tokens") for stage in TRAINED if stage in self.stages]
        return max((limit for limit in limits if limit is not None), default=None)

    @property
    def longest_demonstration(self) -> int | None:
        """Tokens that the longest answer of the demonstrations takes."""
        tokens: int | None = self._entry("sft").get("max_new_tokens")
        return tokens

    @property
    def verifier(self) -> str | None:
        """Name, or ``module:function``, of what scores answers."""
        name: str | None = self._newest("verifier")
        return name

    @property
    def finished_sft(self) -> dict[str, str] | None:
        """Whether SFT was finished, as a :class:`~dpr_lightning.evaluation.finished_sft.FinishedSft` in plain data;
        None: it was not validated, or has not ended.
        """
        record: dict[str, str] | None = self.stages.get("sft", {}).get(FINISHED)
        return record

    def _newest(self, name: str) -> Any:
        values = [self.stages[stage].get(name) for stage in TRAINED if stage in self.stages]
        return next((value for value in values if value is not None), None)

    def _entry(self, stage: str) -> dict[str, Any]:
        if stage not in self.stages:
            stages = ", ".join(self.stages) or "no stage"
            raise InputError(f"{self.path} has {stages}, and not {stage!r}. Run `dpr {stage}` first.")
        return self.stages[stage]

    def _inside(self, value: Any) -> Any:
        """Rows of the file, as this process can open them: what is in the folder, by its path there."""
        return map_paths(lambda path: str(inside) if (inside := self.folder / path).exists() else path, value)

    def _policies(self, stage: str) -> Path:
        policies: str | None = self._entry(stage).get("policies")
        if policies is None:
            raise InputError(f"The stage {stage!r} of {self.path} saved no policies.")
        return self.folder / policies

    def _final(self, stage: str) -> str:
        final = self._policies(stage) / FINAL
        if not final.is_dir():
            raise InputError(
                f"There is no policy {final}: the run has not ended. The command that began it goes on: "
                f"{self._entry(stage).get('command', f'dpr {stage}')}"
            )
        return str(final)


def map_paths(change: Callable[[str], str], rows: Any) -> Any:
    """Rows with each path or name changed: those of a list, and those with weights too."""
    if isinstance(rows, list):
        return [map_paths(change, part) for part in rows]
    if isinstance(rows, Mapping):
        return {**rows, "path": change(rows["path"])}
    return change(rows) if isinstance(rows, str) else rows


def record_stage(path: Path, stage: str, entry: Mapping[str, Any]) -> None:
    """Write the entry of a stage; those of other stages stay.

    Args:
        path: of the manifest, which may not exist yet.
        stage: its name.
        entry: plain values; ``policies`` and ``held_out`` are paths.
    """
    stages = RunManifest.load(path).stages if path.is_file() else {}
    changes = {
        name: map_paths(partial(_relative, path.parent), entry[name])
        for name in ("policies", "held_out")
        if name in entry
    }
    _write(path, {**stages, stage: {**entry, **changes}})


def add_to_stage(path: Path, stage: str, additions: Mapping[str, Any]) -> None:
    """Add plain values to the entry of a stage, which is there already."""
    stages = RunManifest.load(path).stages
    _write(path, {**stages, stage: {**stages[stage], **additions}})


def _write(path: Path, stages: Mapping[str, Any]) -> None:
    with whole_file(path) as stream:
        json.dump({MARK: 1, "stages": stages}, stream, indent=2)
        stream.write("\n")


def _relative(folder: Path, path: str) -> str:
    """A path relative to a folder where it is inside, else absolute; a name that is no path stays."""
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    home = Path(os.path.abspath(folder))
    if absolute.is_relative_to(home):
        return str(absolute.relative_to(home))
    return str(absolute) if absolute.exists() else path
