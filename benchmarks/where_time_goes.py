"""Where the time of one step goes: shares of its operations, and the rate of its products against a large one's.

OMP_NUM_THREADS=1 python -m benchmarks.where_time_goes --rows 4
python -m benchmarks.where_time_goes --shape tiny --rows 8    # to try the script itself

One step of each workload of the scoreboard, after a warmup, under PyTorch's profiler, which adds time to every
operation: shares of small operations are therefore too large.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function

from benchmarks.scoreboard.material import write_material
from benchmarks.scoreboard.ours import WORK
from benchmarks.scoreboard.run import gemm_rate
from benchmarks.scoreboard.workloads import CPU, SHAPES, least_operations
from dpr_lightning.engine.kernels import calling

LAID_OUT, KERNEL = "mkldnn::_linear_pointwise", "kernel "
"""Names of products and of kernels whose operations the profiler does not count."""
KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "dot", LAID_OUT, "kernel product", "kernel pack"),
    "attention": ("scaled_dot_product", "softmax", "kernel attend"),
    "activations and norms": (
        "silu",
        "rms_norm",
        "pow",
        "rsqrt",
        "mean",
        "linalg_vector_norm",
        "Norm",
        "Gated",
        "kernel norm",
    ),
    "log-softmax and drawing": (
        "exp",
        "log",
        "logsumexp",
        "cumsum",
        "searchsorted",
        "gather",
        "amax",
    ),
    "optimizer": ("lerp_", "addcdiv_", "addcmul_", "sqrt", "fused_adamw_", "foreach"),
    "copies": ("copy_", "cat", "index", "index_select", "index_put_impl_", "fill_", "zero_", "clone", "embedding"),
    "sums and products of elements": ("mul", "mul_", "add", "add_", "sub", "sub_", "div", "div_", "neg", "sum"),
}
REST = "all else: dispatch, Python's calls, views"


class _Done(BaseException):
    """Raised when the step has been profiled."""


class _Profiled:
    """A gate as that of the scoreboard, which profiles the second turn."""

    def __init__(self) -> None:
        self.turn, self.profile = 0, profile(with_flops=True)
        self.running = False

    def wait(self, **_: Any) -> None:
        self.begin()

    def begin(self) -> None:
        if self.turn == 1:
            if self.running:  # earlier work is not measured
                self.profile.stop()
                self.profile = profile(with_flops=True)
            self.profile.start()
            self.running = True

    def done(self, **_: Any) -> None:
        if self.running:
            self.profile.stop()
            raise _Done
        self.turn += 1
        self.begin()


def show_kernels() -> None:
    """Record the functions of the compiled library in the profiler."""
    result = calling.function

    def profiled(name: str, dtype: torch.dtype) -> Callable[..., None]:
        called = result(name, dtype)

        def run(*arguments: Any) -> None:
            with record_function(KERNEL + name):
                called(*arguments)

        return run

    calling.function = profiled  # type: ignore[assignment]


def kind_of(name: str) -> str:
    """The kind of an operation, by its name."""
    plain = name.removeprefix("aten::").lstrip("_").removesuffix("Backward")
    for kind, names in KINDS.items():
        for known in names:
            # A short name with another letter is another operation; long names differ between versions at the end.
            if plain == known or (len(known) > 4 and plain.startswith(known)):
                return kind
    return REST


def step(kind: str, folder: Path) -> tuple[Counter[str], float, float]:
    """Seconds of one step by kind of operation, seconds in all, and the rate of its products in operations a second.

    The rate is that of products whose operations the profiler counts; 0 where there are none.
    """
    gate: Any = _Profiled()
    with suppress(_Done):
        WORK[kind](gate, folder, CPU[kind].read(folder / f"{kind}.json"), "ours")
    spent: Counter[str] = Counter()
    flops = counted = 0.0
    for result in gate.profile.key_averages():
        spent[kind_of(result.key)] += result.self_cpu_time_total / 1e6
        if kind_of(result.key) == "products" and not result.key.startswith((LAID_OUT, KERNEL)):
            flops, counted = flops + result.flops, counted + result.self_cpu_time_total / 1e6
    return spent, sum(spent.values()), flops / counted if counted else 0.0


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2_135m")
    parser.add_argument(
        "--rows", type=int, default=4, help="of SFT; scoring and the DPR step take twice as many, decoding four times"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--folder", type=Path, default=Path(".cache/where_time_goes"))
    arguments = parser.parse_args()
    show_kernels()
    times = {"sft": 1, "score": 2, "decode": 4, "dpr": 2}
    works = {
        kind: replace(
            CPU[kind].resized(arguments.rows * times[kind], arguments.dtype, arguments.shape), micro_batches=1
        )
        for kind in CPU
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_material(arguments.folder, SHAPES[arguments.shape], works, 4)
    print("| | " + " | ".join(works[kind].title for kind in works) + " |\n|---|" + "---|" * len(works))
    result = {kind: step(kind, arguments.folder) for kind in works}
    rate = gemm_rate(getattr(torch, arguments.dtype))
    rows = {name: [f"{spent[name] / total:.0%}" for spent, total, _ in result.values()] for name in (*KINDS, REST)}
    rows["PyTorch's own products: rate, of a large one's"] = [
        f"{products / rate:.0%}" if products else "–" for _, _, products in result.values()
    ]
    rows["least operations, at a large product's rate, of all time"] = [
        f"{least_operations(works[kind]) / rate / total:.0%}" for kind, (_, total, _) in result.items()
    ]
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\n{torch.get_num_threads()} threads, {arguments.dtype}, a large product at {rate / 1e9:,.0f} GFLOP/s.")


if __name__ == "__main__":
    main()
