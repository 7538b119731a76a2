"""The optimum of the all-actions objective at discount 0, drawn token by token, without any training.

At discount 0 the objective is met, state by state, by π ∝ π_SFT·exp(r/β). Both models at decode time give just that,
so the score here is what training heads for.

python benchmarks/decode_time_optimum.py runs/quickstart step_0000100 step_0000200
"""

import sys

from torch import Tensor

from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.answers import collect_answers
from dpr_lightning.evaluation.verifiers import load_verifier
from dpr_lightning.functional import kl_divergence, mixed_dense_reward
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rollouts import Combine, SamplingOptions

FORMS: tuple[tuple[dict[str, float], float], ...] = (
    ({"log_ratio": 1.0}, 1.0),
    ({"one_sided": 1.0}, 0.1),
    ({"one_sided_centred": 1.0}, 0.25),
    ({"one_sided_centred": 1.0, "log_policy": 0.5}, 0.25),
    ({"log_policy": 1.0}, 1.0),
)


def optimum(terms: dict[str, float], beta: float) -> Combine:
    """log π_SFT + r/β from log π_SFT and log π_ref, [B, V]."""

    def combine(logprobs: list[Tensor]) -> Tensor:
        policy, reference = logprobs
        divergence = kl_divergence(policy.unsqueeze(1), reference.unsqueeze(1))
        return policy + mixed_dense_reward(terms, policy, reference, divergence) / beta  # type: ignore[arg-type]

    return combine


def main(run: str, references: list[str]) -> None:
    """Print greedy and sampled verifier scores on the development prompts of a quickstart."""
    sft, tokenizer = build_policy(PolicySpec(source=f"{run}/sft/policies/final"), trainable=False)
    prompts, verifier = PromptSet.load(f"{run}/data/development.jsonl", tokenizer), load_verifier("answer")
    for reference in references:
        weak, _ = build_policy(PolicySpec(source=f"{run}/sft/policies/{reference}"), trainable=False)
        for terms, beta in FORMS:
            scores = [
                collect_answers(
                    [sft, weak],
                    tokenizer,
                    prompts,
                    SamplingOptions(96, temperature),
                    verifier=verifier,
                    num_samples=samples,
                    combine=optimum(terms, beta),
                ).score
                for temperature, samples in ((0.0, 1), (1.0, 4))
            ]
            print(f"{reference}  {terms}  β={beta:g}  greedy {scores[0]:.3f}  sampled {scores[1]:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
