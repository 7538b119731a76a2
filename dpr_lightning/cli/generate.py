"""``dpr generate`` and ``dpr evaluate``: what a policy answers, and how good that is."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from dpr_lightning.cli.loading import console, frozen_policy, progress_bar, verifier_named
from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.answers import Answers, collect_answers
from dpr_lightning.evaluation.statistics import mean_interval, pass_at_k
from dpr_lightning.evaluation.tasks import write_jsonl
from dpr_lightning.policies.frozen import check_one_vocabulary
from dpr_lightning.rollouts import SamplingOptions, contrast, only


def generate(
    policy: str,
    prompts: str,
    output: str | None = None,
    reference: str | None = None,
    contrast_strength: float = 0.0,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 256,
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    """Answer prompts, plainly or with decode-time contrast (1+w)·log π − w·log π_ref.

    Args:
        policy: folder or hub id.
        prompts: file of prompts.
        output: JSONL file for the answers; printed when left out.
        reference: folder of the weaker checkpoint to contrast with.
        contrast_strength: w = 1/β.
        samples: answers a prompt.
        max_new_tokens: length limit of an answer.
        temperature: 0 is greedy.
        top_p: draw from the smallest set of tokens with this probability.
        batch_size: sequences decoded at once.
        limit: answer the first so many prompts.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the samples.
    """
    options = SamplingOptions(max_new_tokens, temperature, top_p, batch_size)
    answers, questions = _answer(
        policy, prompts, options, reference, contrast_strength, samples, limit, columns, dtype, seed, None
    )
    rows = [
        {"prompt": questions.texts[place], "completion": text, "length": length, "terminated": bool(ended)}
        for place, text, length, ended in zip(
            answers.rollouts.prompt.tolist(), answers.texts, answers.lengths, answers.rollouts.terminated, strict=True
        )
    ]
    if output is None:
        for row in rows:
            console.print(row["prompt"], style="dim", markup=False)
            console.print(row["completion"], markup=False)
    else:
        write_jsonl(rows, output)
        console.print(f"{len(rows)} answers: {output}")


def evaluate(
    policy: str,
    prompts: str,
    verifier: str = "exact_match",
    sft: str | None = None,
    reference: str | None = None,
    contrast_strength: float = 0.0,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 256,
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Score a policy on prompts with a verifier: mean with 95% interval, pass@k, length, reverse KL to π_SFT.

    Args:
        policy: folder or hub id.
        prompts: file of prompts with what the verifier needs.
        verifier: name of a verifier or module:function.
        sft: folder of π_SFT, to measure the reverse KL of sampled answers.
        reference: folder of the weaker checkpoint to contrast with.
        contrast_strength: w = 1/β.
        samples: answers a prompt.
        max_new_tokens: length limit of an answer.
        temperature: 0 is greedy.
        batch_size: sequences decoded at once.
        limit: use the first so many prompts.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the samples.
        output: JSON file to write.
    """
    options = SamplingOptions(max_new_tokens, temperature, 1.0, batch_size)
    answers, _ = _answer(
        policy, prompts, options, reference, contrast_strength, samples, limit, columns, dtype, seed, verifier, sft
    )
    assert answers.scores is not None
    grouped = [answers.scores[start : start + samples] for start in range(0, len(answers.scores), samples)]
    interval = mean_interval([sum(group) / samples for group in grouped])
    result: dict[str, Any] = {
        "score": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "length": answers.length,
        "prompts": len(grouped),
        "samples": samples,
    }
    correct = [[score > 0.5 for score in group] for group in grouped]
    powers = [2**exponent for exponent in range(1, samples.bit_length())]
    result |= {f"pass@{k}": pass_at_k(correct, k) for k in powers}
    if answers.reverse_kl is not None:
        result["reverse_kl"] = sum(answers.reverse_kl) / len(answers.reverse_kl)
    console.print_json(data=result)
    if output is not None:
        Path(output).write_text(json.dumps(result, indent=2) + "\n")


def _answer(
    policy: str,
    prompts: str,
    options: SamplingOptions,
    reference: str | None,
    strength: float,
    samples: int,
    limit: int | None,
    columns: dict[str, str] | None,
    dtype: str,
    seed: int,
    verifier: str | None,
    sft: str | None = None,
) -> tuple[Answers, PromptSet]:
    model, tokenizer = frozen_policy(policy, dtype)
    models: list[nn.Module] = [model]
    if reference is not None:
        check_one_vocabulary({"policy": policy, "reference": reference})
        models.append(frozen_policy(reference, dtype)[0])
    questions = PromptSet.load(prompts, tokenizer, columns=columns, limit=limit)
    with progress_bar("answers", len(questions) * samples) as advance:
        answers = collect_answers(
            models,
            tokenizer,
            questions,
            options,
            verifier=verifier_named(verifier),
            num_samples=samples,
            seed=seed,
            combine=contrast(strength) if reference is not None else only,
            sft=frozen_policy(sft, dtype)[0] if sft is not None else None,
            progress=advance,
        )
    return answers, questions
