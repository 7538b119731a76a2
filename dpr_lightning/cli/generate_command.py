"""``dpr generate`` and ``dpr evaluate``: the answers of a policy to prompts, and their scores by a verifier."""

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpr_lightning.data import PromptSet, Rows
from dpr_lightning.engine.decoding import Combine, single_model
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.evaluated_answers import EvaluatedAnswers, collect_answers
from dpr_lightning.evaluation.evaluation_words import evaluation_lines, evaluation_result
from dpr_lightning.evaluation.tasks import write_jsonl
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies.frozen import check_one_vocabulary
from dpr_lightning.policies.inference_policy import frozen_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import RewardSpec, decode_time_optimum
from dpr_lightning.rollouts import SamplingOptions


def generate(
    policy: ReadPath,
    prompts: Rows,
    output: Annotated[str | None, Writes(marks=('"terminated"',))] = None,
    references: list[ReadPath] | None = None,
    reward: RewardSpec | None = None,
    beta: float = 1.0,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 256,
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
) -> None:
    """Answer prompts, plainly or from the decode-time optimum of a dense reward.

    Args:
        policy: folder or hub id.
        prompts: file of prompts.
        output: JSONL file for the answers; printed when left out.
        references: folders of weaker checkpoints: sample from π·exp(r/β), where DPR at γ = 0 is heading, instead of π.
        reward: r, of π against the references; log_ratio where left out, which makes it contrast of strength 1/β.
        beta: β, nats of reward per nat of KL.
        samples: answers a prompt.
        max_new_tokens: length limit of an answer.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability.
        stop_strings: texts that end an answer.
        batch_size: sequences decoded at once.
        limit: answer the first so many prompts.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the samples.
    """
    options = SamplingOptions(max_new_tokens, temperature, top_p, batch_size, stop_strings)
    request = _DecodingRequest(policy, references or [], reward, beta, dtype)
    answers, questions = _answer(request, prompts, options, samples, limit, columns, seed, None)
    rows = [
        {"prompt": questions.texts[index], "completion": text, "length": length, "terminated": bool(ended)}
        for index, text, length, ended in zip(
            answers.rollouts.prompt.tolist(), answers.texts, answers.lengths, answers.rollouts.terminated, strict=True
        )
    ]
    if output is None:
        for row in rows:
            console.print(row["prompt"], style="dim", markup=False)
            console.print(row["completion"], markup=False)
    else:
        write_jsonl(rows, output)
        console.print(f"{counted(len(rows), 'answer')}: {output}")


def evaluate(
    policy: ReadPath,
    prompts: Rows,
    verifier: str = "exact_match",
    sft: ReadPath | None = None,
    references: list[ReadPath] | None = None,
    reward: RewardSpec | None = None,
    beta: float = 1.0,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 256,
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    output: Annotated[str | None, Writes(marks=('"low": ',))] = None,
    json: bool = False,
) -> None:
    """Score a policy on prompts with a verifier: right answers with a 95% interval, pass@k, length, reverse KL.

    Args:
        policy: folder or hub id.
        prompts: file of prompts with what the verifier needs.
        verifier: name of a verifier or module:function.
        sft: folder of π_SFT, to measure the reverse KL of sampled answers.
        references: folders of weaker checkpoints: sample from π·exp(r/β), where DPR at γ = 0 is heading, instead of π.
        reward: r, of π against the references; log_ratio where left out, which makes it contrast of strength 1/β.
        beta: β, nats of reward per nat of KL.
        samples: answers a prompt.
        max_new_tokens: length limit of an answer.
        temperature: 0 is greedy.
        stop_strings: texts that end an answer.
        batch_size: sequences decoded at once.
        limit: use the first so many prompts.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the samples.
        output: JSON file to write.
        json: print the content of that file, and nothing else, to standard output.
    """
    options = SamplingOptions(max_new_tokens, temperature, 1.0, batch_size, stop_strings)
    request = _DecodingRequest(policy, references or [], reward, beta, dtype)
    answers, questions = _answer(request, prompts, options, samples, limit, columns, seed, verifier, sft)
    result = evaluation_result(answers, samples)
    if json:
        console.print_json(data=result)
    else:
        for line in evaluation_lines(answers, questions, result, max_new_tokens):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if output is not None:
        Path(output).write_text(dumps(result, indent=2) + "\n")


@dataclass(frozen=True)
class _DecodingRequest:
    """A policy folder, or the decode-time optimum of its reward against references."""

    policy: str
    references: list[str]
    reward: RewardSpec | None
    beta: float
    dtype: Dtype

    def load(self) -> tuple[list[nn.Module], PreTrainedTokenizerBase, Combine]:
        """The models, the tokenizer of the policy, and how the models' distributions are combined."""
        model, tokenizer = frozen_policy(self.policy, self.dtype)
        if not self.references:
            if self.reward is not None:
                raise InputError("`reward` is of the policy against `references`, and there are none.")
            return [model], tokenizer, single_model
        names = {"policy": self.policy} | {f"reference {index}": name for index, name in enumerate(self.references, 1)}
        check_one_vocabulary(names)
        weaker = [frozen_policy(reference, self.dtype)[0] for reference in self.references]
        return [model, *weaker], tokenizer, decode_time_optimum(self.reward or RewardSpec(), self.beta)


def _answer(
    request: _DecodingRequest,
    prompts: Rows,
    options: SamplingOptions,
    samples: int,
    limit: int | None,
    columns: dict[str, str] | None,
    seed: int,
    verifier: str | None,
    sft: str | None = None,
) -> tuple[EvaluatedAnswers, PromptSet]:
    models, tokenizer, combine = request.load()
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
            combine=combine,
            sft=frozen_policy(sft, request.dtype)[0] if sft is not None else None,
            progress=advance,
        )
    return answers, questions
