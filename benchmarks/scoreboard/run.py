"""The scoreboard: this package and its peers on the same work, taking turns.

make bench                                              # builds the peers' environment, measures, writes the tables
make bench BENCH_ARGS=--gpu                             # the rows of a GPU: half a billion weights, eight minutes
python -m benchmarks.scoreboard.run --workloads sft     # one row
python -m benchmarks.scoreboard.run --shape tiny        # to try the script itself

Two sides at a time take turns, each a separate process that runs one step per turn: both meet the same load of the
machine, and no more than two are in memory.
The results go to a JSON file; `benchmarks.scoreboard.report` turns that into docs/performance.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.scoreboard.gradients import compare_gradients
from benchmarks.scoreboard.material import write_material
from benchmarks.scoreboard.workloads import CPU, GPU, SHAPES, Workload, counted_tokens, least_operations

PLAIN, RECOMPUTING = "ours_plain", "ours_recomputing"
SIDES = {
    "sft": ["ours", RECOMPUTING, "trl", "trl_tuned", "transformers"],
    "score": ["ours", "trl", "trl_tuned"],
    "decode": ["ours", PLAIN, "transformers", "static"],
    "dpr": ["ours", RECOMPUTING, "trl", "trl_tuned"],
}
_AS_DPR = {"GOMP_SPINCOUNT": "5000"}
SETTINGS = {
    "ours": _AS_DPR,
    PLAIN: _AS_DPR | {"DPR_KERNELS": "0"},
    RECOMPUTING: _AS_DPR,
}
"""Environment variables of this package's sides: those that `dpr` sets, and switches."""


class Worker:
    """A side in a separate process."""

    def __init__(self, python: str, side: str, workload: str, folder: Path) -> None:
        self.side = side
        module = "ours" if side in SETTINGS else "peers"
        command = [python, "-m", f"benchmarks.scoreboard.{module}", workload, side, str(folder)]
        self.log = folder / f"{workload}_{side}.log"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=os.environ | SETTINGS.get(side, {}),
        )
        self.hear()

    def hear(self) -> dict[str, Any]:
        """The next line of its output.

        Raises:
            SystemExit: it ended instead.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.side} ended with {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        result: dict[str, Any] = json.loads(line)
        return result

    def turn(self) -> dict[str, Any]:
        """One step."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


LONG_ENOUGH = 0.2
"""Seconds of a product after which no larger one is tried: 2,048² in bfloat16 take a minute on some CPUs."""


def gemm_rate(dtype: torch.dtype) -> float:
    """Operations a second of one large product, the best of three; of a smaller one where that takes long."""
    device, largest = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    width, seconds = 128, 0.0
    while width < largest and seconds < LONG_ENOUGH:
        width *= 2
        left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        seconds = min(_seconds_of_product(left, right) for _ in range(3))
    return 2 * width**3 / seconds


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    begun = time.perf_counter()
    product = left @ right
    float(product[0, 0])  # waits for a GPU
    return time.perf_counter() - begun


def measure(
    work: Workload, sides: list[str], peers: str, folder: Path, warmups: int, rounds: int, ends: float
) -> dict[str, Any]:
    """Measure the first side against each of the other ones in turn, so that two processes are in memory at a time.

    Args:
        work: of a turn.
        sides: to measure.
        peers: Python of the environment with TRL.
        folder: of the material.
        warmups: rounds that do not count.
        rounds: in all, warmups included.
        ends: time (``time.monotonic``, seconds) after which no further round starts, except the first that counts.

    Returns:
        ``turns`` of each side, those of the first side in the same rounds (``against``), and ``gemm_rates``.
    """
    first, rates = sides[0], list[float]()
    turns: dict[str, list[dict[str, Any]]] = {}
    against: dict[str, list[dict[str, Any]]] = {}
    pairs = [[first, other] for other in sides[1:]] or [sides]
    for index, pair in enumerate(pairs):
        share = time.monotonic() + (ends - time.monotonic()) / (len(pairs) - index)
        workers = [Worker(sys.executable if side in SETTINGS else peers, side, work.kind, folder) for side in pair]
        measured = _take_turns(work, workers, warmups, rounds, share, rates)
        turns |= {side: measured[side] for side in pair if side not in turns}
        against |= {side: measured[first] for side in pair[1:]}
    return {"turns": turns, "against": against, "gemm_rates": rates}


def _take_turns(
    work: Workload, workers: list[Worker], warmups: int, rounds: int, ends: float, rates: list[float]
) -> dict[str, list[dict[str, Any]]]:
    """The turns of each worker; appends the rate of products before each round to ``rates``, and ends the workers."""
    turns: dict[str, list[dict[str, Any]]] = {worker.side: [] for worker in workers}
    try:
        for index in range(rounds):
            if index > warmups and time.monotonic() > ends:
                print(f"{work.kind}: no time for more than {index} rounds.", file=sys.stderr)
                break
            rates.append(gemm_rate(getattr(torch, work.dtype)))
            for worker in workers:
                result = worker.turn()
                turns[worker.side].append(result)
                print(f"{work.kind} {index} {worker.side}: {result['wall']:.2f} s", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            worker.end()
    return turns


def main() -> None:
    """Measure, and write the numbers to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(CPU), default=list(CPU))
    parser.add_argument("--gpu", action="store_true", help="the rows of a GPU instead of those of a CPU")
    parser.add_argument(
        "--minutes", type=float, help="no round begins later but for one that counts; 8 with --gpu, no limit without"
    )
    parser.add_argument("--shape", choices=list(SHAPES), help="of the models, instead of each row's own")
    parser.add_argument("--peers", default=".cache/peers/bin/python", help="Python of the environment with TRL")
    parser.add_argument("--warmups", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", help="only these, for example ours trl")
    parser.add_argument("--rows", type=int, help="sequences a step, where a machine is slow")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="what the machine does best"
    )
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/scoreboard/results.json"))
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available() and arguments.shape is None:
        parser.error("--gpu measures a GPU, and PyTorch sees none here; `--gpu --shape tiny` tries the script itself")
    minutes = arguments.minutes if arguments.minutes is not None else 8.0 if arguments.gpu else float("inf")
    ends, rounds = time.monotonic() + 60 * minutes, arguments.warmups + arguments.repeats
    rows_of = GPU if arguments.gpu else CPU
    workloads = {
        kind: rows_of[kind].resized(arguments.rows, arguments.dtype, arguments.shape) for kind in arguments.workloads
    }
    (shape,) = {work.shape for work in workloads.values()}
    folder = arguments.folder.resolve() / shape
    folder.mkdir(parents=True, exist_ok=True)
    write_material(folder, SHAPES[shape], workloads, rounds + 1)
    commit = _output("git", "rev-parse", "--short", "HEAD") + ("+" if _output("git", "status", "--short") else "")
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for index, (kind, work) in enumerate(workloads.items()):
        sides = [side for side in SIDES[kind] if arguments.sides is None or side in arguments.sides]
        if arguments.gpu:
            sides = [side for side in sides if side != PLAIN]  # kernels are for CPUs
        if not sides:
            parser.error(f"of {kind} here, nothing is left to measure: --sides of {', '.join(SIDES[kind])}")
        share = time.monotonic() + (ends - time.monotonic()) / (len(workloads) - index)
        result = measure(work, sides, arguments.peers, folder, arguments.warmups, rounds, share)
        if kind == "sft":
            result["gate"] = {side: compare_gradients(folder / f"{side}.safetensors", folder / "sft") for side in sides}
        result |= {
            "warmups": arguments.warmups,
            "work": asdict(work),
            "tokens": counted_tokens(work),
            "operations": least_operations(work),
            "commit": commit,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": _machine(),
        }
        results[f"gpu_{kind}" if arguments.gpu else kind] = result
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    family = f" of family {fields['cpu family']}" if "cpu family" in fields else ""  # names are not always of one model
    return f"{name}{family}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


if __name__ == "__main__":
    main()
