"""``dpr compare``: which arm gives the best policy, by how much, and how sure are we? Over seeds, from one config."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml

from dpr_lightning.cli.toy_command import ToyTask, toy
from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.noise import NoiseKind
from dpr_lightning.experiments.arm_specs import ArmSpec
from dpr_lightning.experiments.experiment import Experiment, run_experiment
from dpr_lightning.experiments.recipes import Recipes
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Reads, Writes
from dpr_lightning.reports.console import console
from dpr_lightning.rewards.cache import content_hash

PARTS = ("base", "data")
SETTINGS, HEADER = "compare.yaml", "# Written by `dpr compare`"


def compare(
    arms: dict[str, ArmSpec],
    seeds: list[int],
    output: Annotated[
        str,
        Writes("seed_*"),
        Writes(SETTINGS, marks=(HEADER,)),
        Writes("compare.json", marks=('"paired"',)),
        Writes("report.json", "report.html", marks=REPORT_MARKS),
    ] = "runs/compare",
    title: str = "Comparison",
    data: Annotated[str | None, Reads(*PARTS)] = None,
    task: ToyTask = "addition",
    source: ReadPath | None = None,
    demonstrations: int = 400,
    hidden_size: int = 128,
    layers: int = 4,
    noise: float = 0.0,
    noise_kind: NoiseKind = "step",
    test: int = 400,
    samples: int = 4,
    sft: ReadPath = "toy/sft.yaml",
    dpr: ReadPath = "toy/dpr.yaml",
    self_play: ReadPath = "toy/self_play.yaml",
    home: str = "runs/toy",
    sft_steps: int | None = None,
    dpr_steps: int | None = None,
    preview_samples: int = 16,
    preview_prompts: int = 100,
    verifier: str = "answer",
    focus: str | None = None,
    pool: list[Annotated[str, Reads("seed_*.json")]] | None = None,
    online: bool = False,
) -> None:
    """Run every arm for every seed from the same SFT run, and compare all of them with SFT.

    Finished parts are not repeated: run the same command to go on after an interruption or after adding arms. Arms
    that train get as many FLOPs as the DPR config costs, counted, unless their changes name `trainer.max_steps` or they
    have `steps_multiple`.

    Args:
        arms: by name; each states how it differs from π_SFT.
        seeds: of weights, order and samples, and of the toy's data.
        output: folder for everything.
        title: of the report.
        data: folder with base/ and data/ that all seeds share; None creates the toy for each seed.
        task: of the toy, as for `dpr toy`.
        source: of the toy's task, where it is read from a file.
        demonstrations: of the toy.
        hidden_size: of the toy's policy.
        layers: of the toy's policy.
        noise: share of the toy's demonstrations with a mistake, as for `dpr toy`.
        noise_kind: of these mistakes.
        test: prompts of the toy's evaluation.
        samples: answers a prompt, in addition to the greedy one.
        sft: packaged config of SFT.
        dpr: packaged config of DPR that arms with `train: dpr` change.
        self_play: packaged config that arms with `train: self_play` change.
        home: folder that these configs' paths begin with.
        sft_steps: optimizer steps of SFT; None takes the config's.
        dpr_steps: optimizer steps of DPR as its config has it, which set the budget of all arms that train.
        preview_samples: of π_SFT a prompt, to predict where each reward leads; 0 predicts nothing.
        preview_prompts: development prompts that these samples answer.
        verifier: name or `module:function` of what scores the answers.
        focus: the arm that is compared with every other arm as well; it trains in this process, the others in a second
            one, where a core is free.
        pool: folders with `seed_N.json` of seeds that the same comparison measured elsewhere, on another machine for
            example; these are not run again.
        online: send the tables to W&B's server; otherwise its run is saved in the folder.
    """
    options = dict(locals())
    folder = Path(output)
    recipes = Recipes(
        sft,
        dpr,
        home,
        self_play,
        sft_steps,
        dpr_steps,
        preview_samples,
        preview_prompts,
        verifier,
    )
    toy_options: dict[str, Any] = {"task": task, "source": source, "demonstrations": demonstrations, "test": test}
    if noise and data is not None:
        raise InputError(
            "`noise` is of the toy that is created, and `data` names rows that exist. Leave one of them out."
        )
    if (hidden_size, layers) != (128, 4):
        toy_options |= {"hidden_size": hidden_size, "layers": layers}
    if noise:
        toy_options |= {"noise": noise, "noise_kind": noise_kind}
    contents = {"data": None if data is None else [_content(data, part) for part in PARTS], "source": _digest(source)}
    experiment = Experiment(
        title,
        folder,
        arms,
        seeds,
        recipes,
        prepare=partial(_prepare, data, toy_options),
        commands=[f"dpr compare --config {folder / SETTINGS}"],
        samples=samples,
        focus=focus,
        options=options | contents,
        pool=pool or [],
        online=online,
    )
    _write_settings(folder, options)
    outcome = run_experiment(experiment)
    content = {
        "arms": outcome.arms,
        "paired": outcome.paired,
        "preview": outcome.preview,
        "seeds": seeds,
        "settings": {name: dataclasses.asdict(arm) for name, arm in experiment.specs.items()},
    }
    (folder / "compare.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"  numbers: {folder / 'compare.json'}", highlight=False)


def _prepare(data: str | None, toy_options: dict[str, Any], folder: Path, seed: int) -> None:
    """Create ``base/`` and ``data/`` of a seed once; refuse a folder that other options created."""
    marker = folder / "prepared.json"
    inputs = toy_options if data is None else {"folder": data, "content": [_content(data, part) for part in PARTS]}
    if marker.is_file():
        previous = json.loads(marker.read_text(encoding="utf-8"))
        if previous != inputs:
            raise InputError(
                f"{folder} was prepared with {previous}, not {inputs}. Choose another `output`, or delete it."
            )
        return
    if data is None:
        toy(str(folder), **toy_options, seed=seed)
    else:
        for part in PARTS:
            shutil.copytree(Path(data) / part, folder / part, dirs_exist_ok=True)
    marker.write_text(json.dumps(inputs) + "\n", encoding="utf-8")


def _write_settings(folder: Path, options: Mapping[str, Any]) -> None:
    """Write the options of the command as a config that repeats it."""
    arms = {name: arm.to_dict() for name, arm in options["arms"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({**options, "arms": arms}, sort_keys=False, allow_unicode=True)
    (folder / SETTINGS).write_text(f"{HEADER}\n{text}", encoding="utf-8")


def _digest(source: str | None) -> str | None:
    """Hash of a file's content, independent of its path; a name that is no file as it is."""
    if source is None or not Path(source).is_file():
        return source
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _content(data: str, part: str) -> str:
    if not (Path(data) / part).is_dir():
        raise InputError(f"`data` is a folder with base/ and data/, as `dpr toy` writes; {data} has no {part}/.")
    return content_hash(Path(data) / part)
