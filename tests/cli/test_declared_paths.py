"""Every parameter that is a path declares what is read or written there."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from lightning import Callback, LightningDataModule, LightningModule

from dpr_lightning import callbacks, data, modules
from dpr_lightning.cli.command_table import MODULES, command_function
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.harness import HarnessSpec
from dpr_lightning.evaluation.judge_endpoint import EndpointSpec
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.lightning_cli.path_checks import protected
from dpr_lightning.paths import PathUse, ReadPath, Reads, Writes, parameters_of, path_uses
from dpr_lightning.policies import LoraSpec, PolicySpec
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions, VllmSampler

PATH_WORDS = re.compile(
    r"output|folder|file|^run|path|dir$|prompts|policy|^sft|reference|source|tokenizer|checkpoint|^train$|validation$|"
    r"^test$|demonstrations|responses|^head$|pool|^data$|cache|template|held_out|evaluation|precomputed|opponent|first|"
    r"second|config|dpr$|self_play$"
)
NO_PATHS = {
    "gguf_file": "a name in `source`",
    "ArmSpec.policy": "a checkpoint's name in the comparison",
    "ArmSpec.references": "the same",
    "VllmSampler.options": "of vLLM",
}


def _declared_parameters() -> Iterator[tuple[str, str, Any]]:
    specifications = (
        PolicySpec,
        LoraSpec,
        RewardSpec,
        SamplingOptions,
        HarnessSpec,
        EndpointSpec,
        ArmSpec,
        VllmSampler,
    )
    parts = [getattr(module, name) for module in (callbacks, data, modules) for name in module.__all__]
    kinds = (LightningDataModule, LightningModule, Callback)
    classes = [part for part in parts if inspect.isclass(part) and issubclass(part, kinds)]
    assert len(classes) >= 12
    commands = [command_function(name) for name in MODULES]
    for part in (*commands, *classes, *specifications):
        for name, annotation in parameters_of(part).items():
            yield part.__name__, name, annotation


def _strings(annotation: Any) -> Iterator[bool]:
    """For each text that a type allows, whether it is declared as a path."""
    if annotation in (str, Path):
        yield False
    metadata = getattr(annotation, "__metadata__", ())
    if any(isinstance(mark, (Reads, Writes)) for mark in metadata):
        yield True
        return
    for part in get_args(annotation):
        if not isinstance(part, (Reads, Writes, str)):
            yield from _strings(part)


def test_every_parameter_that_looks_like_a_path_says_what_happens_there() -> None:
    undeclared = [
        f"{owner}.{name}"
        for owner, name, annotation in _declared_parameters()
        if PATH_WORDS.search(name)
        and False in _strings(annotation)
        and not {name, f"{owner}.{name}"} & NO_PATHS.keys()
        and "dict" not in str(annotation)
    ]
    assert not undeclared
    declared = [name for _, name, annotation in _declared_parameters() if True in _strings(annotation)]
    assert len(declared) > 60


def test_paths_in_classes_of_others_take_part(case: Path) -> None:
    value = {"class_path": f"{__name__}.Archive", "init_args": {"folder": "a", "sources": {"x": "sft", "y": None}}}
    uses = list(path_uses(Any, [value], "trainer.callbacks"))
    assert [(use.option, str(use.path)) for use in uses] == [("Archive.folder", "a"), ("Archive.sources.x", "sft")]
    value["init_args"]["folder"] = "sft"  # type: ignore[index]
    with pytest.raises(InputError, match=r"`Archive\.folder`"), protected(path_uses(Any, [value], "trainer.callbacks")):
        pass


class Archive:
    """Stands for a callback outside of this package."""

    def __init__(self, folder: Annotated[str, Writes()], sources: dict[str, ReadPath | None]) -> None: ...


def test_what_is_no_path_is_no_path(case: Path) -> None:
    texts = ["owner/name:train", "{{ messages }}\n" * 500, "~nobody/x", "a\0b", "", "none"]
    uses = [use for text in texts for use in path_uses(ReadPath, text, "option")]
    with protected([*uses, PathUse("output", case / "out", Writes())]):
        pass
