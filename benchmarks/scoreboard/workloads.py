"""The workloads of the scoreboard, in numbers; both sides read this, in environments that share nothing else."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind with tied embeddings; weights are random."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def body(self) -> int:
        """Number of weights of all layers that every token is multiplied with."""
        width = self.hidden_size // self.heads
        attention = 2 * self.hidden_size**2 + 2 * self.hidden_size * self.kv_heads * width
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head(self) -> int:
        """Number of weights of the output head."""
        return self.hidden_size * self.vocabulary

    def forward(self, *, context: float, scored: float) -> float:
        """Operations a token: 2 a weight, and 4 a hidden unit, layer and token of ``context`` attended to on average.

        Args:
            context: tokens.
            scored: share of the positions whose logits are computed.
        """
        return 2 * self.body + 2 * self.head * scored + 4 * self.hidden_size * self.layers * context


SHAPES = {
    "smollm2_135m": Shape(576, 1536, 30, 9, 3, 49152),
    "qwen2_5_half_billion": Shape(896, 4864, 24, 14, 2, 151936),
    "tiny": Shape(64, 128, 2, 2, 1, 512),
}


@dataclass(frozen=True)
class Workload:
    """One row of the scoreboard.

    Args:
        kind: ``sft``, ``score``, ``decode`` or ``dpr``.
        rows: sequences of a step; for policy gradients, prompts × samples.
        prompt: tokens.
        completion: tokens.
        samples: answers to one prompt.
        micro_batches: of one optimizer step.
        dtype: of products, on all sides.
        shape: of the models, one of :data:`SHAPES`.
    """

    kind: str
    title: str
    rows: int
    prompt: int
    completion: int
    samples: int = 1
    micro_batches: int = 1
    dtype: str = "bfloat16"
    shape: str = "smollm2_135m"

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.completion

    def write(self, file: Path) -> None:
        """Write this as JSON, for the sides to read."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "Workload":
        """Read the JSON of :meth:`write`."""
        return cls(**json.loads(file.read_text()))

    def resized(self, rows: int | None, dtype: str, shape: str | None) -> "Workload":
        """A copy with other rows, type or shape."""
        return replace(self, rows=rows or self.rows, dtype=dtype, shape=shape or self.shape)


CPU = {
    "sft": Workload("sft", "C1 SFT", rows=8, prompt=128, completion=128),
    "score": Workload("score", "C2 scoring by one frozen model", rows=16, prompt=128, completion=128),
    "decode": Workload("decode", "C3 decoding", rows=64, prompt=128, completion=33),
    "dpr": Workload("dpr", "C4 DPR step", rows=64, prompt=64, completion=64, samples=8, micro_batches=4),
}
_HALF_BILLION = {"shape": "qwen2_5_half_billion"}
GPU = {
    # Rows without padding, as packed ones are.
    "sft": Workload("sft", "G1 SFT", rows=32, prompt=128, completion=896, **_HALF_BILLION),
    "score": Workload("score", "G2 scoring by one frozen model", rows=64, prompt=512, completion=512, **_HALF_BILLION),
    "decode": Workload("decode", "G5 decoding", rows=512, prompt=128, completion=129, **_HALF_BILLION),
    "dpr": Workload(
        "dpr", "G6 DPR step", rows=512, prompt=256, completion=256, samples=8, micro_batches=8, **_HALF_BILLION
    ),
}


def counted_tokens(work: Workload) -> int:
    """Tokens by which a step's speed is counted: all of SFT and scoring; those decoded one by one of the other two."""
    if work.kind == "decode":
        return work.rows * (work.completion - 1)  # the prefill gives the first
    return work.rows * (work.completion if work.kind == "dpr" else work.length)


def least_operations(work: Workload) -> float:
    """The least operations of a step.

    Training is 3 forward passes. A DPR step is sampling, two frozen models, and training, and in each of them a prompt
    can be read once for all of its samples (performance notes: 6 forward passes a completion token).
    """
    shape, half = SHAPES[work.shape], work.length / 2
    if work.kind == "sft":
        return 3 * work.rows * work.length * shape.forward(context=half, scored=work.completion / work.length)
    if work.kind == "score":
        return work.rows * work.length * shape.forward(context=half, scored=work.completion / work.length)
    late = work.prompt + work.completion / 2
    if work.kind == "decode":
        return work.rows * (work.completion - 1) * shape.forward(context=late, scored=1.0)
    decoded = work.rows * work.completion * shape.forward(context=late, scored=1.0)
    read = work.rows * work.prompt * shape.forward(context=work.prompt / 2, scored=0.0)
    return 6 * (decoded + read / work.samples)
