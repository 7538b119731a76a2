"""Results as a JSON file, and the comparison of two: to the bit, or with float differences up to a bound.

A gate's results are a flat mapping from a key to a number, a list of (step, number) pairs, or a hash. JSON writes a
float with as many digits as identify it, so that a record holds every bit.
"""

import csv
import hashlib
import json
import math
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

Values = dict[str, Any]
HASH = "sha256"
LIBRARIES = ("torch", "numpy", "scipy", "transformers", "lightning", "deepspeed")
# Times and counted costs, and settings that only repeat the command.
IGNORED = re.compile(r"seconds|time|memory|version|host|path|commit|flops|^settings$|^seeds$")


def environment() -> dict[str, str]:
    """What the last bits of a result depend on beside the code: CPU, threads, compiler, libraries."""
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else []
    compiler = shutil.which("g++") or shutil.which("c++")
    command = [compiler, "-dumpfullversion"] if compiler else ["echo", "none"]
    return {
        "CPU": models[0] if models else platform.processor() or platform.machine(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "C++ compiler": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(),
        **{name: version(name) for name in LIBRARIES},
    }


def metrics(table: Path) -> Values:
    """Every value in a CSV table of Lightning, by the name of its metric, with the step that it was logged at."""
    series: dict[str, list[tuple[int, float]]] = {}
    with table.open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name, cell in row.items():
                if cell and name not in ("step", "epoch") and not IGNORED.search(name):
                    series.setdefault(name, []).append((int(row["step"]), float(cell)))
    return dict(series)


def weights(folder: Path) -> Values:
    """SHA-256 of a saved policy's weights, and sum and Euclidean norm of each tensor.

    The hash covers names, types, shapes and bytes, in the order of the names.
    """
    tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    digest, sizes = hashlib.sha256(), {}
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        sizes[f"{name} sum"] = float(value.double().sum())
        sizes[f"{name} norm"] = float(value.double().norm())
    return {HASH: digest.hexdigest(), **sizes}


def numbers(file: Path) -> Values:
    """Every number in a JSON file, by its path of keys; texts, times and settings are left out."""
    return dict(_numbers(json.loads(file.read_text()), ""))


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if not IGNORED.search(str(key)):
                yield from _numbers(part, f"{path}/{key}".lstrip("/"))
    elif isinstance(value, int | float):
        yield path, value


def below(name: str, values: Mapping[str, Any]) -> Values:
    """The same values, their keys preceded by ``name``."""
    return {f"{name}: {key}": value for key, value in values.items()}


class Difference(NamedTuple):
    """One number, or hash, that two records do not share."""

    key: str
    recorded: Any
    result: Any

    @property
    def absolute(self) -> float:
        """Infinite where the two are not finite numbers of one type."""
        floats = type(self.recorded) is type(self.result) is float
        difference = abs(self.recorded - self.result) if floats else math.inf
        return difference if math.isfinite(difference) else math.inf

    @property
    def relative(self) -> float:
        """To the larger of the two."""
        larger = 0.0 if math.isinf(self.absolute) else max(abs(self.recorded), abs(self.result))
        return self.absolute / larger if larger else self.absolute

    def is_within(self, bound: float) -> bool:
        """Whether the absolute or the relative difference is at most ``bound``."""
        return min(self.absolute, self.relative) <= bound


class Verdict(NamedTuple):
    """Of one gate."""

    passed: bool
    line: str


def judge(recorded: Values, result: Values, bound: float | None = None) -> Verdict:
    """Compare a gate's results with the recorded ones.

    A key that disappeared is paired with a new one that has the same value: a metric was renamed, which is reported
    and accepted.

    Args:
        bound: largest absolute or relative difference of two floats that is accepted; hashes are then not compared.
            None: results are equal to the bit.
    """
    renamed = _renamed(recorded, result)
    result = {renamed.get(key, key): value for key, value in result.items()}
    hashes = set() if bound is None else {key for key in recorded if key.endswith(HASH)}
    differences = [
        difference
        for key in [*recorded, *(key for key in result if key not in recorded)]
        if key not in hashes
        for difference in _differences(key, recorded.get(key, "missing"), result.get(key, "missing"))
    ]
    note = "".join(f"; {old} is now {new}" for new, old in renamed.items())
    if not differences:
        return Verdict(True, "equal" + note)
    passed = bound is not None and all(difference.is_within(bound) for difference in differences)
    values = [difference for difference in differences if not difference.key.endswith(HASH)]
    worst = max(values or differences, key=lambda difference: (difference.relative, difference.absolute))
    floats = [difference for difference in differences if math.isfinite(difference.absolute)]
    largest = (
        f"; floats by at most {max(difference.absolute for difference in floats):.3g}, "
        f"relative {max(difference.relative for difference in floats):.3g}"
        if floats
        else ""
    )
    line = (
        f"{f'equal up to {bound:g}' if passed else 'differs'}: {len(differences)} values, "
        f"{worst.key} was {worst.recorded!r} and is {worst.result!r}{largest}{note}"
    )
    return Verdict(passed, line)


def _renamed(recorded: Values, result: Values) -> dict[str, str]:
    """The earlier name of each new key whose value a key that disappeared had."""
    gone = [key for key in recorded if key not in result]
    names: dict[str, str] = {}
    for new in result:
        if new not in recorded:
            old = next((key for key in gone if not [*_differences("", recorded[key], result[new])]), None)
            if old is not None:
                names[new] = old
                gone.remove(old)
    return names


def _differences(key: str, recorded: Any, result: Any) -> Iterator[Difference]:
    """Where two values differ; lists element by element."""
    if isinstance(recorded, list | tuple) and isinstance(result, list | tuple):
        if len(recorded) != len(result):
            yield Difference(f"length of {key}", len(recorded), len(result))
        for index, pair in enumerate(zip(recorded, result, strict=False)):
            yield from _differences(f"{key}[{index}]", *pair)
    elif _bits(recorded) != _bits(result):
        yield Difference(key, recorded, result)


def _bits(value: Any) -> Any:
    """A form in which NaN equals itself and 0.0 is not -0.0."""
    return value.hex() if isinstance(value, float) else (type(value), value)


def write(file: Path, results: Mapping[str, Values]) -> None:
    """Write a record."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"environment": environment(), "gates": results}, indent=1) + "\n")


def read(file: Path) -> dict[str, Values]:
    """The results in a record.

    Raises:
        ValueError: it is from another CPU, thread count, compiler or library version, on which last bits may differ.
    """
    content = json.loads(file.read_text())
    earlier, here = content["environment"], environment()
    reasons = [
        f"{key} was {earlier.get(key)}, is {here.get(key)}"
        for key in dict.fromkeys([*earlier, *here])
        if earlier.get(key) != here.get(key)
    ]
    if reasons:
        raise ValueError(
            f"{file} cannot be compared with results from here, whose last bits may differ for another reason than the "
            f"code: {'; '.join(reasons)}. Record the earlier commit again, here."
        )
    return dict(content["gates"])
