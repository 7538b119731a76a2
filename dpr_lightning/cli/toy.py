"""``dpr toy``: a tiny policy and demonstrations with a verifier, as the files that any run starts from."""

from pathlib import Path

from dpr_lightning.cli.loading import console
from dpr_lightning.evaluation.tasks import make_splits, write_jsonl
from dpr_lightning.policies import create_toy_policy

ADDITION = {"operators": "+", "min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}


def toy(
    output: str = "runs/toy",
    demonstrations: int = 400,
    prompts: int = 4000,
    development: int = 200,
    test: int = 400,
    hidden_size: int = 128,
    layers: int = 4,
    seed: int = 0,
) -> None:
    """Write ``base/`` (a tiny Llama and a character tokenizer) and ``data/`` (JSONL splits with disjoint prompts).

    The task is two-digit addition, carry by carry, from reasoning-gym's chain_sum generator.

    Args:
        output: folder to write.
        demonstrations: prompts with rationale and answer, to imitate.
        prompts: prompts for reinforcement learning; their completions are never read.
        development: for choosing settings, and as held-out demonstrations.
        test: for the last evaluation.
        hidden_size: of the Llama.
        layers: of the Llama.
        seed: of weights and data.
    """
    sizes = {"test": test, "development": development, "prompts": prompts, "demonstrations": demonstrations}
    splits = make_splits("chain_sum", sizes, seed=seed, short_prompt=True, **ADDITION)
    folder = Path(output)
    for name, rows in splits.items():
        write_jsonl(rows, folder / "data" / f"{name}.jsonl")
    texts = [row["prompt"] + row["completion"] for row in splits["demonstrations"]] + ["0123456789"]
    create_toy_policy(folder / "base", texts, hidden_size=hidden_size, layers=layers, seed=seed)
    console.print(f"A toy policy and its data: {folder}/base, {folder}/data")
