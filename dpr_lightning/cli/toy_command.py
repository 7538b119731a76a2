"""``dpr toy``: a tiny policy and demonstrations with a verifier, as files that a run starts from."""

from pathlib import Path
from typing import Annotated, Any, Literal

from dpr_lightning.errors import InputError
from dpr_lightning.evaluation.noise import NoiseKind, add_noise
from dpr_lightning.evaluation.scan import read_scan, split_rows
from dpr_lightning.evaluation.tasks import make_splits, write_jsonl
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies import create_toy_policy
from dpr_lightning.reports.console import console

ToyTask = Literal["addition", "spelling", "scan"]
SPLITS = ("test", "development", "prompts", "demonstrations")
FILES = (*SPLITS, "oracle_masked", "oracle_dropped")
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "addition": ("chain_sum", {"operators": "+", "min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}),
    "spelling": ("spell_backward", {"min_word_len": 3, "max_word_len": 5}),
}


def toy(
    output: Annotated[
        str, Writes("base", whole=True), Writes(*(f"data/{name}.jsonl" for name in FILES), marks=('"answer"',))
    ] = "runs/toy",
    task: ToyTask = "addition",
    source: ReadPath | None = None,
    demonstrations: int = 400,
    prompts: int = 4000,
    development: int = 200,
    test: int = 400,
    hidden_size: int = 128,
    layers: int = 4,
    noise: float = 0.0,
    noise_kind: NoiseKind = "step",
    seed: int = 0,
) -> None:
    """Write ``base/`` (a tiny Llama and its tokenizer) and ``data/`` (JSONL splits with disjoint prompts).

    Every completion ends in `Answer: X`, which the verifier `answer` reads.

    Args:
        output: folder to write.
        task: `addition` of two-digit numbers, carry by carry, and `spelling` of short words backwards come from
            reasoning-gym's generators, a token a character; `scan` turns commands into actions, a token a word.
        source: SCAN's file of `IN: … OUT: …` lines, such as tasks.txt.
        demonstrations: prompts with completions, to imitate.
        prompts: prompts for reinforcement learning; their completions are never read.
        development: for choosing settings, and as held-out demonstrations.
        test: for the last evaluation.
        hidden_size: of the Llama.
        layers: of the Llama.
        noise: share of the demonstrations with a mistake. `oracle_masked.jsonl` is then the same demonstrations with
            the wrong characters as `loss_spans`, and `oracle_dropped.jsonl` the right ones alone.
        noise_kind: `step`: a character of a step, and the answer after it; `answer`: the answer alone; `swap`: rows
            have each other's completions; `left_out`: a step is missing; `systematic`: the same wrong result of a step
            wherever it occurs.
        seed: of weights and data.
    """
    sizes = dict(zip(SPLITS, (test, development, prompts, demonstrations), strict=True))
    if (source is not None) != (task == "scan"):
        raise InputError("`source` is the file that `task: scan` is read from: it takes both, or neither.")
    if source is not None:
        splits = split_rows(read_scan(source), sizes, seed)
        texts = [row["prompt"] + " " + row["completion"] for rows in splits.values() for row in rows]
    else:
        name, options = GENERATORS[task]
        splits = make_splits(name, sizes, seed=seed, short_prompt=True, **options)
        texts = [row["prompt"] + row["completion"] for row in splits["demonstrations"]]
        texts += ["0123456789"] if task == "addition" else ["abcdefghijklmnopqrstuvwxyz"]
    folder = Path(output)
    if noise:
        noisy = add_noise(splits["demonstrations"], noise, noise_kind, seed)
        wrong = set(noisy.wrong)
        right = [row for index, row in enumerate(noisy.rows) if index not in wrong]
        splits |= {"demonstrations": noisy.rows, "oracle_masked": noisy.masked, "oracle_dropped": right}
    for split, rows in splits.items():
        write_jsonl(rows, folder / "data" / f"{split}.jsonl")
    create_toy_policy(folder / "base", texts, hidden_size=hidden_size, layers=layers, seed=seed, words=task == "scan")
    console.print(f"A toy policy and its data: {folder}/base, {folder}/data")
