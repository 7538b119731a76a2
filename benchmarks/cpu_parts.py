"""Gains of the parts of a step on a CPU, each against PyTorch alone: one table a part.

python -m benchmarks.cpu_parts                    # all of them, some minutes
python -m benchmarks.cpu_parts attention products
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.lean_layers import SMOLLM2_135M
from dpr_lightning.engine import acted_loss, block_attention
from dpr_lightning.engine.decoding import sample_tokens
from dpr_lightning.engine.decoding.decode_batch import DecodeBatch
from dpr_lightning.engine.decoding.packed_linear import _OneDnnLinear
from dpr_lightning.engine.fused_optimizer import use_fused_step
from dpr_lightning.engine.host_memory import retain_freed_memory
from dpr_lightning.engine.kernels import calling
from dpr_lightning.engine.kernels.decoding_kernels import PackedWeight
from dpr_lightning.engine.master_weights import MasterWeights
from dpr_lightning.engine.recompute import recompute_activations
from dpr_lightning.rollouts import SamplingOptions, sample

HEADS, SHARED, WIDTH, TOKENS = 9, 3, 64, 2048
ROWS = (1, 4, 8, 16, 32, 64, 128, 256)
SWITCH = "DPR_KEEPS_MEMORY"


def seconds(run: Callable[[], object], least: float = 0.5) -> float:
    """Median of as many calls as take ``least`` seconds, five at least, after two."""
    run()
    run()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < least:
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def attention() -> None:
    """Of 2,048 bfloat16 tokens in rows of one length, 9 heads over 3: ms forward, and forward and backward."""
    print(
        "| tokens a row | PyTorch's, forward | in blocks | PyTorch's, forward and backward | in blocks |\n"
        "|---|---|---|---|---|"
    )
    for length in (64, 128, 256, 512, 1024, 2048):
        query, key, value = (
            torch.randn(TOKENS // length, length, heads, WIDTH).bfloat16().transpose(1, 2).requires_grad_()
            for heads in (HEADS, SHARED, SHARED)
        )
        gradient = torch.randn(TOKENS // length, length, HEADS * WIDTH).bfloat16()

        def library(parts: tuple[Tensor, ...] = (query, key, value)) -> Tensor:
            result = scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
            return result.transpose(1, 2).flatten(2)

        def ours(parts: tuple[Tensor, ...] = (query, key, value)) -> Tensor:
            return block_attention(*parts, WIDTH**-0.5)

        def both(forward: Callable[[], Tensor], gradient: Tensor = gradient) -> object:
            return torch.autograd.grad(forward(), (query, key, value), gradient)  # noqa: B023

        cells: list[float] = []
        with torch.no_grad():
            cells += [seconds(library), seconds(ours)]
        for forward in (library, ours):
            cells.append(seconds(partial(both, forward)))
        print(f"| {length} | " + " | ".join(f"{1e3 * cell:.1f}" for cell in cells) + " |")


@torch.no_grad()
def products() -> None:
    """GFLOP/s of `linear` / of weights laid out once for oneDNN / for the kernel, 60 MB of them in turn."""
    print("| type, weights | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |\n|---|" + "---|" * len(ROWS))
    for dtype in (torch.float32, torch.bfloat16):
        for width, height in ((576, 1536), (1536, 576), (576, 49152)):
            count = max(1, int(60e6 / (width * height * dtype.itemsize)))
            layers = [torch.nn.Linear(width, height, bias=False).to(dtype) for _ in range(count)]
            ways: list[list[Any]] = [
                layers,
                *([kind(one.weight, None) for one in layers] for kind in (_OneDnnLinear, PackedWeight)),
            ]
            cells = []
            for rows in ROWS:
                inputs = torch.randn(rows, width).to(dtype)
                work = 2 * rows * width * height * count / 1e9
                rates = [
                    work / seconds(lambda each=each, inputs=inputs: [one(inputs) for one in each], 0.2)  # type: ignore[misc]
                    for each in ways
                ]
                cells.append(" / ".join(f"{rate:.0f}" for rate in rates))
            print(f"| {str(dtype).removeprefix('torch.')}, {width} × {height} | " + " | ".join(cells) + " |")


def sampling() -> None:
    """Milliseconds to sample 64 tokens of 49,152 from bfloat16 logits: by PyTorch, and by the kernel."""
    logits, uniform = torch.randn(64, 49152).bfloat16(), torch.rand(64, dtype=torch.float64)

    def run() -> object:
        return sample_tokens(logits, uniform)

    print("| PyTorch | kernel |\n|---|---|")
    print(f"| {1e3 * seconds(without_kernels(run)):.2f} | {1e3 * seconds(run):.2f} |")


def without_kernels(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as on a machine without a compiler."""

    def alone() -> Any:
        with patch.object(calling, "compiled", lambda: None):
            return run()

    return alone


def prompts() -> None:
    """Seconds of 32 tokens of 8 answers to each of 8 prompts, 3 rounds after one: with copied and with shared keys."""
    options = SamplingOptions(max_new_tokens=33)
    begun: list[float] = []

    def before_a_token() -> bool:
        begun.append(time.perf_counter())  # the first when prompts have been read
        return False

    print(
        "| type, tokens of a prompt | a copy for every answer | stored once | time against a copy |\n|---|---|---|---|"
    )
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMOLLM2_135M)).to(dtype).eval()
        for length in (64, 512):
            prompt_ids = torch.randint(0, SMOLLM2_135M["vocab_size"], (8, length)).tolist()
            copied: list[float] = []
            once: list[float] = []
            for turn in range(4):
                for times in (copied, once):
                    begun.clear()
                    copies = (
                        patch.object(DecodeBatch, "_share", return_value=None) if times is copied else nullcontext()
                    )
                    with copies:
                        sample(
                            model,
                            prompt_ids,
                            options,
                            num_samples=8,
                            seed=turn,
                            stop_tokens=[],
                            pad_token=0,
                            unwanted=before_a_token,
                        )
                    times.append(time.perf_counter() - begun[0])
            ratios = sorted(few / many for few, many in zip(once[1:], copied[1:], strict=True))
            cells = f"{statistics.median(copied[1:]):.2f} | {statistics.median(once[1:]):.2f}"
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
            print(f"| {str(dtype).removeprefix('torch.')}, {length} | {cells} | {spread} |", flush=True)


def memory() -> None:
    """Seconds and page faults of a step of SFT in bfloat16, with freed memory retained or not, twice in turn."""
    for saved in ("", "1", "", "1"):
        subprocess.run([sys.executable, "-m", __spec__.name, "step"], env=os.environ | {SWITCH: saved}, check=True)


def step() -> None:
    """One side of :func:`memory`."""
    import resource

    if os.environ.get(SWITCH):
        retain_freed_memory()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMOLLM2_135M)).bfloat16().train()
    recompute_activations(model)
    tokens = torch.randint(0, SMOLLM2_135M["vocab_size"], (8, 256))
    mask = torch.arange(256).expand(8, -1) >= 128

    optimizer = MasterWeights(model.parameters(), lambda weights: use_fused_step(torch.optim.AdamW(weights, lr=1e-6)))

    def one() -> None:
        acted_loss(model, tokens, mask, lambda logprob, _: -logprob.mean()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    one()
    before, taken = resource.getrusage(resource.RUSAGE_SELF), seconds(one)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt - before.ru_minflt
    saved = "retained" if os.environ.get(SWITCH) else "returned to the system"
    print(f"memory {saved}: {taken:.2f} s a step, {faults:,} page faults in all, peak {after.ru_maxrss / 1024:,.0f} MB")


PARTS = {
    "attention": attention,
    "products": products,
    "sampling": sampling,
    "prompts": prompts,
    "memory": memory,
    "step": step,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all but the last by default")
    for part in parser.parse_args().parts or list(PARTS)[:-1]:
        print(f"\n{part}: {PARTS[part].__doc__}\n")
        PARTS[part]()
