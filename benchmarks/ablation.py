"""What each part of `dpr_lightning/engine` pays: CPU time and peak memory of a step with it, over those without it.

OMP_NUM_THREADS=1 python -m benchmarks.ablation                     # all rows, about ten minutes on one core
OMP_NUM_THREADS=1 python -m benchmarks.ablation --workloads decode --repeats 9

Both sides of a row take turns in one process, in float32 and in SmolLM2-135M's shape (with the toy policy of the
quickstart where the name says so). Ratios are taken within a turn; a row has their median and range.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from ctypes import CDLL
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dpr_lightning.engine import (
    Lockstep,
    acted_loss,
    fused_head,
    fused_optimizer,
    master_weights,
    recompute,
    row_groups,
    scoring,
    sequence_logprobs,
    shared_prompts,
    training_loss,
)
from dpr_lightning.engine.decoding import (
    one_token_attention,
    packed_linear,
    rms_norm,
    routes,
    sample_tokens,
    single_model,
)
from dpr_lightning.engine.decoding.cached_state import CachedState
from dpr_lightning.engine.decoding.decode_batch import DecodeBatch
from dpr_lightning.engine.kernels import compiling
from dpr_lightning.engine.recompute import recompute_activations
from dpr_lightning.policies import PolicySpec, build_policy, create_toy_policy
from dpr_lightning.rollouts import SamplingOptions, sample

SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
Step = Callable[[], object]
Context = Callable[[], AbstractContextManager[Any]]


def smollm(**changes: int) -> Any:
    """A decoder with random weights, of SmolLM2-135M's shape but for ``changes``."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMOLLM2_135M | changes)).train()
    recompute_activations(model)
    return model


def toy() -> Any:
    """The policy of the quickstart."""
    with TemporaryDirectory() as folder:
        create_toy_policy(folder, ["0123456789 +=,:>Answer\n"])
        return build_policy(PolicySpec(source=folder))[0]


# A workload prepares a step, within the context of its side; the step then runs within it, once a turn.


def train(model: Any, rows: int, prompt: int, answer: int) -> Callable[[], Step]:
    """A step of SFT."""
    tokens = torch.randint(3, model.config.vocab_size, (rows, prompt + answer))
    mask = torch.arange(prompt + answer).expand(rows, -1) >= prompt
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        for group in optimizer.param_groups:
            group["fused"] = None
        fused_optimizer.use_fused_step(optimizer)
        acted_loss(model, tokens, mask, lambda logprob, _: -logprob.mean()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: step


def head_alone(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> Callable[[], Step]:
    """The loss of some tokens and its gradients, from the states before the head on."""
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, width, dtype=dtype).mul_(0.02).requires_grad_()
    hidden = torch.randn(tokens, width, dtype=dtype).requires_grad_()
    actions = torch.randint(0, vocabulary, (tokens,))

    def step() -> None:
        fused_head.head_loss(hidden, weight, actions, lambda logprob, _: -logprob.sum()).loss.backward()
        weight.grad = hidden.grad = None

    return lambda: step


def score(model: Any, lengths: list[int], prompt: int, token_budget: int | None = None) -> Callable[[], Step]:
    """Log-probabilities of answers in rows of these lengths."""
    tokens = torch.randint(3, model.config.vocab_size, (len(lengths), max(lengths)))
    columns = torch.arange(max(lengths))
    mask = (columns >= prompt) & (columns < torch.tensor(lengths)[:, None])
    return lambda: lambda: sequence_logprobs(model, tokens, mask, token_budget=token_budget)


def policy_gradient(model: Any, prompts: int, samples: int, prompt: int, answer: int) -> Callable[[], Step]:
    """A rollout, its scores by two models (here one, twice), and the gradient of a loss."""
    questions = torch.randint(3, model.config.vocab_size, (prompts, prompt)).tolist()
    options = SamplingOptions(max_new_tokens=answer)

    def step() -> None:
        rollouts = sample(model, questions, options, stop_tokens=[], pad_token=0, num_samples=samples)
        for _ in range(2):
            sequence_logprobs(model, rollouts.tokens, rollouts.mask)
        acted_loss(model, rollouts.tokens, rollouts.mask, lambda part, _: part.sum(), sampled=True).loss.backward()
        model.zero_grad()

    return lambda: step


def decode(model: Any, prompts: int, samples: int, prompt: int, tokens: int, answer: int = 400) -> Callable[[], Step]:
    """``tokens`` tokens of each row, after the prefill; with one prompt, each of its rows has a copy of its keys."""
    model.eval()
    questions = torch.randint(3, model.config.vocab_size, (prompts, prompt)).tolist()
    starts: Context = replaced((CachedState, "start", _copied_prompts)) if prompts == 1 else nullcontext

    @torch.no_grad()
    def prepare() -> Step:
        with starts():
            state = routes.Decoder(model).new_state(answer)
            batch = DecodeBatch([state], single_model, 0, torch.device("cpu"), Lockstep([]))
            logits = batch.prefill(questions, samples)
        generator = torch.Generator().manual_seed(0)
        token = logits.argmax(-1)

        @torch.no_grad()
        def step() -> None:
            nonlocal token
            for _ in range(tokens):
                uniform = torch.rand(len(token), dtype=torch.float64, generator=generator)
                token, _ = sample_tokens(batch.step(token), uniform)

        return step

    return prepare


def half_precision_step(model: Any) -> Callable[[], Step]:
    """An optimizer's step of bfloat16 weights, with float32 copies."""
    model.bfloat16()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)

    def prepare() -> Step:
        build = lambda weights: torch.optim.AdamW(weights, fused=True)  # noqa: E731
        return master_weights.MasterWeights(model.parameters(), build).step

    return prepare


_start = CachedState.start


def _copied_prompts(state: CachedState, attention: Tensor | None, length: Tensor, samples: int) -> None:
    """:meth:`CachedState.start`, with a copy of the prompt's keys for every row."""
    with patch.object(state, "one_token", None):
        _start(state, attention, length, samples)


def _in_order(tokens: Tensor, mask: Tensor, length: Tensor, cut: row_groups.Cut, shared: bool) -> list[Tensor]:
    return list(torch.split(torch.arange(len(length)), cut(length.tolist())))


def replaced(*changes: tuple[Any, str, Any]) -> Context:
    """Replace attributes of modules or classes inside the context."""

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            for target, name, value in changes:
                stack.enter_context(patch.object(target, name, value))
            yield

    return context


def _no(*_: Any, **__: Any) -> bool:
    return False


def _none(*_: Any, **__: Any) -> None:
    return None


WORKLOADS: dict[str, Callable[[], Callable[[], Step]]] = {
    "sft": lambda: train(smollm(), 2, 128, 128),
    "sft, head": lambda: train(smollm(num_hidden_layers=1), 8, 8, 248),
    "sft, layers": lambda: train(smollm(num_hidden_layers=8, vocab_size=1000), 8, 128, 128),
    "head": lambda: head_alone(2048, 576, 49152, torch.float32),
    "head, large": lambda: head_alone(2048, 576, 151936, torch.float32),
    "head, bfloat16": lambda: head_alone(400, 32, 49152, torch.bfloat16),
    "head, large, bfloat16": lambda: head_alone(400, 32, 151936, torch.bfloat16),
    "score": lambda: score(smollm(), [256] * 4, 128),
    "score uneven": lambda: score(smollm(), [40, 256, 60, 200, 80, 250, 50, 230], 32, 512),
    "dpr": lambda: policy_gradient(smollm(), 2, 4, 64, 24),
    "decode 64": lambda: decode(smollm(), 1, 64, 128, 3),
    "decode 8 x 8 of 64": lambda: decode(smollm(), 8, 8, 64, 3),
    "decode 4 x 8 of 512": lambda: decode(smollm(), 4, 8, 512, 3),
    "half-precision step": lambda: half_precision_step(smollm()),
    "toy train": lambda: train(toy(), 64, 12, 48),
    "toy decode 16": lambda: decode(toy(), 1, 16, 12, 50, 1000),
    "toy decode 512": lambda: decode(toy(), 1, 512, 12, 10, 1000),
}
DECODING = ["decode 64", "toy decode 16", "toy decode 512"]
HEAD = ["head", "head, large", "head, bfloat16", "head, large, bfloat16"]
SHARED = ["decode 8 x 8 of 64", "decode 4 x 8 of 512"]
LIBRARY = routes.Route(routes.LIBRARY_CACHE)
ALONE = (compiling, "load", _none)
NONE_HERE = SimpleNamespace(has_kernels=_no, serves=_no)
# A part: what its row compares with, what its absence is, and the workloads of its rows.
PARTS: dict[str, tuple[Context, Context, list[str]]] = {
    "fused_head": (
        nullcontext,
        replaced((training_loss, "plain_head", _none), (scoring, "plain_head", _none)),
        ["sft", "sft, head", "score", "dpr"],
    ),
    "fused_head, strips": (nullcontext, replaced((fused_head, "_STRIP", 1 << 60)), ["sft, head", *HEAD, "score"]),
    "recompute": (nullcontext, replaced((recompute, "autocasts", lambda: True)), ["sft", "sft, layers", "toy train"]),
    "shared_prompts": (nullcontext, replaced((shared_prompts, "is_known_decoder", _no)), ["dpr"]),
    "row_groups": (nullcontext, replaced((row_groups, "_parts", _in_order)), ["score uneven"]),
    "fused_optimizer": (
        nullcontext,
        replaced((fused_optimizer, "use_fused_step", _none)),
        ["sft", "toy train"],
    ),
    "master_weights, parts": (
        nullcontext,
        replaced((master_weights, "_AT_ONCE", 1 << 60)),
        ["half-precision step"],
    ),
    "decoding": (nullcontext, replaced((routes, "sampling_route", lambda _: LIBRARY)), DECODING),
    "one_token and kernels": (nullcontext, replaced((routes, "has_one_token_pass", _no)), DECODING),
    "kernels": (nullcontext, replaced(ALONE), [*DECODING, *SHARED]),
    "kernels, products": (
        nullcontext,
        replaced((packed_linear, "_fit_kernels", _no), (packed_linear, "_fit_onednn", _no)),
        DECODING,
    ),
    "kernels, products against oneDNN": (nullcontext, replaced((packed_linear, "_fit_kernels", _no)), DECODING),
    "kernels, norms": (nullcontext, replaced((rms_norm, "kernels", NONE_HERE)), DECODING),
    "kernels, attention": (nullcontext, replaced((one_token_attention, "kernels", NONE_HERE)), DECODING),
    "one_token, no kernels": (replaced(ALONE), replaced(ALONE, (routes, "has_one_token_pass", _no)), DECODING),
    "packed_linear, no kernels": (
        replaced(ALONE),
        replaced(ALONE, (packed_linear, "_fit_onednn", _no)),
        DECODING,
    ),
    "shared_prompt_cache": (nullcontext, replaced((CachedState, "start", _copied_prompts)), SHARED),
}


class Measured:
    """A side of a row, and its turns: CPU seconds, and the peak of the process's memory in MB."""

    def __init__(self, context: Context, prepare: Callable[[], Step]) -> None:
        self._context = context
        with context():
            self._step = prepare()
        self.turns: list[tuple[float, float]] = []

    def turn(self) -> None:
        """Run one step."""
        CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        with self._context():
            begun = time.process_time()
            self._step()
            seconds = time.process_time() - begun
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.turns.append((seconds, int(fields["VmHWM"].split()[0]) / 1024))


def measure(workload: str, parts: list[str], repeats: int) -> None:
    """Print the rows of a workload."""
    torch.set_num_threads(1)
    prepare = WORKLOADS[workload]()
    for part in parts:
        base, without, of = PARTS[part]
        if workload not in of:
            continue
        sides = [Measured(base, prepare), Measured(without, prepare)]
        for _ in range(repeats + 1):
            for side in sides:
                side.turn()
        (seconds, peaks), (seconds_without, peaks_without) = (zip(*side.turns[1:], strict=True) for side in sides)
        ratios = [one / other for one, other in zip(seconds, seconds_without, strict=True)]
        print(
            f"| {part} | {workload} | {statistics.median(seconds):.3f} | {statistics.median(seconds_without):.3f} | "
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f}) | "
            f"{max(peaks):,.0f} | {max(peaks_without):,.0f} | {max(peaks) / max(peaks_without):.2f} |",
            flush=True,
        )


def main() -> None:
    """Measure each workload in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="measure in this process, as those of other calls do")
    arguments = parser.parse_args()
    if arguments.here:
        measure(arguments.workloads[0], arguments.parts, arguments.repeats)
        return
    print(
        "| part | workload | CPU s | without | time, with over without | peak MB | without | memory |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for workload in arguments.workloads:
        options = ["--workloads", workload, "--repeats", str(arguments.repeats), "--parts", *arguments.parts]
        subprocess.run([sys.executable, "-m", "benchmarks.ablation", "--here", *options], check=True)


if __name__ == "__main__":
    main()
