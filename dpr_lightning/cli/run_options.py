"""``--run FOLDER``: options that a command takes from the manifest of a run unless they are given."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpr_lightning.check_result import CheckResult
from dpr_lightning.errors import InputError
from dpr_lightning.run_manifest import AUDIT_OF_TRAINED, RunManifest

RUN = "--run"
Values = Mapping[str, Callable[[RunManifest], Any]]


def _held_out(manifest: RunManifest) -> Any:
    """Rows that the run did not learn from; where it held none out, those that it learnt from."""
    return manifest.held_out if manifest.held_out is not None else manifest.train


def _check(manifest: RunManifest) -> CheckResult | None:
    return CheckResult.load(manifest.folder)


_ANSWERS: Values = {"columns": lambda run: run.columns, "max_new_tokens": lambda run: run.max_new_tokens}
_SFT_AND_REFERENCE: Values = {"sft": lambda run: run.sft, "references": lambda run: [run.reference]}
_REWARD: Values = {
    "sft": lambda run: run.sft,
    "references": lambda run: [run.reference if (check := _check(run)) is None else check.reference_in(run)],
    "reward": lambda run: None if (check := _check(run)) is None else check.reward,
}
"""The reward that `dpr check` found, else the one by default."""
_SCORED: Values = {**_ANSWERS, "verifier": lambda run: run.verifier}
_AUDIT_OF_TRAINED: Values = {
    "sft": lambda run: run.sft,
    "references": lambda run: list(run.references.values()),
    "columns": lambda run: run.columns,
    "demonstrations": lambda run: run.train,
    "exclude": lambda run: run.held_out,
    "max_length": lambda run: run.max_length,
    "limit": lambda run: run.limit,
    "recipe": lambda run: str(run.path),
    "output": lambda run: str(run.folder / AUDIT_OF_TRAINED),
}
"""Options of `dpr audit --rows train`."""
OPTIONS: dict[str, Values] = {
    "preview": {**_SFT_AND_REFERENCE, **_SCORED, "prompts": _held_out},
    "audit": {
        **_SCORED,
        "sft": lambda run: run.sft,
        "references": lambda run: list(run.references.values()),
        "demonstrations": _held_out,
        "output": lambda run: str(run.folder / "audit" / "audit.json"),
    },
    "best_of": {**_REWARD, **_SCORED, "prompts": _held_out, "output": lambda run: str(run.folder / "best_of")},
    "rewards": {
        **_REWARD,
        "columns": lambda run: run.columns,
        "responses": _held_out,
        "output": lambda run: str(run.folder / "rewards"),
    },
    "serve-reward": _REWARD,
    "generate": {**_ANSWERS, "policy": lambda run: run.policy, "prompts": _held_out},
    "pairs": {
        **_REWARD,
        **_ANSWERS,
        "policy": lambda run: run.policy,
        "prompts": lambda run: run.train,
        "judge": lambda run: "dense" if run.verifier is None else f"verifier:{run.verifier}",
        "output": lambda run: str(run.folder / "pairs" / "pairs.jsonl"),
    },
    "gap": {
        **_SCORED,
        "policy": lambda run: run.sft,
        "pairs": lambda run: str(run.folder / "pairs" / "pairs.jsonl"),
        "test": _held_out,
        "output": lambda run: str(run.folder / "gap"),
    },
    "evaluate": {**_SCORED, "policy": lambda run: run.policy, "sft": lambda run: run.sft, "prompts": _held_out},
    "judge": {
        **_ANSWERS,
        "policy": lambda run: run.policy,
        "sft": lambda run: run.sft,
        "prompts": _held_out,
        "cache": lambda run: str(run.folder / "judge" / "replies.jsonl"),
        "output": lambda run: str(run.folder / "judge" / "judge.json"),
    },
    "harness": {"policy": lambda run: run.policy},
    "export": {"source": lambda run: run.policy},
}
"""By command, its options and their values. `report` has an option of this name itself."""


def with_configs_of_run(arguments: Sequence[str]) -> list[str]:
    """The arguments of `dpr plan`, with the config of the newest stage for ``--run FOLDER``.

    ``--run`` is also a section of configs, of which a folder is no value.
    """
    result: list[str] = []
    for argument in arguments:
        folder = argument if result[-1:] == [RUN] else argument.removeprefix(f"{RUN}=")
        configs = [path for name in ("rl.yaml", "sft.yaml") if (path := Path(folder) / name).is_file()]
        if configs and (result[-1:] == [RUN] or argument.startswith(f"{RUN}=")):
            result = result[:-1] if result[-1:] == [RUN] else result
            result += ["--config", str(configs[0])]
        else:
            result.append(argument)
    return result


def with_run_options(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, with those for which ``--run FOLDER`` stands.

    Args:
        command: one of :data:`OPTIONS`; the arguments of others are not changed.
        arguments: of the command line. An option that is there is left as it is.

    Raises:
        InputError: there is no manifest, or it lacks what the command needs.
    """
    if command not in OPTIONS:
        return list(arguments)
    remaining: list[str] = []
    folder: str | None = None
    for argument in arguments:
        if argument.startswith(f"{RUN}="):
            folder = argument.partition("=")[2]
        elif remaining[-1:] == [RUN]:
            remaining.pop()
            folder = argument
        else:
            remaining.append(argument)
    if remaining[-1:] == [RUN]:
        raise InputError(f"`{RUN}` takes the folder of a run.")
    if folder is None:
        return remaining
    manifest = RunManifest.load(folder)
    options = OPTIONS[command]
    if command == "audit" and _lists_trained(remaining):
        options = _AUDIT_OF_TRAINED
    present = {argument.partition("=")[0].partition(".")[0] for argument in remaining if argument.startswith("--")}
    values = {
        option: value
        for option, read in options.items()
        if f"--{option}" not in present and (value := read(manifest)) is not None
    }
    if "reward" in values:
        form = values["reward"].get("form")
        print(f"The reward is {form}, as `dpr check` found; `--reward.form` changes it.", file=sys.stderr)
    added = [f"--{option}={value if isinstance(value, str) else json.dumps(value)}" for option, value in values.items()]
    return [*added, *remaining]


def _lists_trained(arguments: Sequence[str]) -> bool:
    """Whether ``--rows train`` is among the arguments."""
    return "--rows=train" in arguments or ("--rows", "train") in pairwise(arguments)
