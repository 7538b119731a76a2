"""``dpr best_of``: the score of the best of n samples, by the dense reward, by a verifier head, and by an oracle."""

import json
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import Annotated

import torch

from dpr_lightning.data import PromptSet, Rows
from dpr_lightning.errors import InputError, counted
from dpr_lightning.evaluation.evaluated_answers import collect_answers
from dpr_lightning.evaluation.reward_preview import default_forms
from dpr_lightning.evaluation.verification import Ranking, in_words, verification
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.experiments.saved_report import machine, save_report
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Writes
from dpr_lightning.policies import load_tokenizer, load_verifier_head, score_responses
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.policies.weights_dtype import dtype_of
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports import Panel, Report, Series, arms_table
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import SFT, DenseReward, RewardSpec, token_rewards
from dpr_lightning.rollouts import SamplingOptions

# Rankings in one panel, the oracle among them; more could not be distinguished.
CURVES = 6


def best_of(
    sft: ReadPath,
    references: list[ReadPath],
    prompts: Rows,
    verifier: str,
    output: Annotated[
        str, Writes("best_of.json", marks=('"rankings"',)), Writes("report.json", "report.html", marks=REPORT_MARKS)
    ],
    head: ReadPath | None = None,
    reward: RewardSpec | None = None,
    samples: int = 64,
    limit: int = 200,
    max_new_tokens: int = 256,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 512,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
) -> None:
    """Best-of-n curves of samples of π_SFT: what generating more gains, and which ranking picks right answers.

    Args:
        sft: folder of π_SFT.
        references: folders of earlier checkpoints of the same run.
        prompts: file of prompts that were not trained on, with what the verifier needs.
        verifier: name of a verifier or module:function; the oracle.
        output: folder for best_of.json and report.html.
        head: folder of a verifier head, as `dpr fit` with VerifierHead saves it.
        reward: the reward you have in mind, the recommended one by default; every form is ranked separately, too.
        samples: number for each prompt, the largest n.
        limit: prompts used.
        max_new_tokens: length limit of an answer.
        stop_strings: texts that end an answer.
        batch_size: sequences decoded at once.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the samples.
    """
    if samples < 2:
        raise InputError(f"The best of `samples` needs at least 2; found {samples}.")
    spec = reward if reward is not None else RewardSpec.recommended()
    options = SamplingOptions(max_new_tokens, batch_size=batch_size, stop_strings=stop_strings)
    tokenizer = load_tokenizer(sft)
    judge = verifier_named(verifier)
    questions = PromptSet.load(prompts, tokenizer, columns=columns, limit=limit)
    if len(questions) < 2:
        raise InputError(f"{questions.file} has {len(questions)} prompt: an interval takes at least two.")
    verifying = load_verifier_head(head, tokenizer, dtype) if head is not None else None
    forms = default_forms(spec) | {"log_policy": RewardSpec(form="log_policy")}
    dense = DenseReward.from_folders(sft, references, spec, dtype=dtype)
    dense.frozen.to(best_device())
    with progress_bar("samples of π_SFT", len(questions) * samples) as advance, dense.frozen.use(SFT) as policy:
        answers = collect_answers(
            policy, tokenizer, questions, options, verifier=judge, num_samples=samples, seed=seed, progress=advance
        )
    tokens, mask = answers.rollouts.tokens, answers.rollouts.mask
    scores = dense.score(tokens, mask, divergence=True)
    rankings = {name: token_rewards(scores, form).sum(1) for name, form in forms.items()}
    if verifying is not None:
        dense.frozen.to(torch.device("cpu"))
        rankings["verifier_head"] = score_responses(verifying.to(best_device()), tokens, mask)
    shape = (len(questions), samples)
    counts = sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})
    results = verification(
        {name: values.reshape(shape).numpy() for name, values in rankings.items()},
        torch.tensor(answers.scores).reshape(shape).numpy(),
        torch.tensor(answers.lengths).reshape(shape).numpy(),
        counts,
    )
    words, entries = in_words(results), [ranking.to_dict() for ranking in results]
    arms = {
        each["name"]: {
            "picked": each["best_of"][samples]["mean"],
            "length": each["length"][samples],
            "auc": each["auc"],
        }
        for each in entries
    }
    console.print(arms_table(arms, f"Best of {samples}", highlight=""))
    console.print(words, highlight=False)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"samples": samples, "prompts": len(questions), "rankings": entries, "verdict": words}
    (folder / "best_of.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    content = Report(
        title=f"Best of {samples}",
        verdict=words,
        arms=arms,
        paired={f"{each.name} - one sample": {f"best of {samples}": vars(each.gain)} for each in results},
        panels={"Best of n": _curves(results, counts)},
        settings={"sft": sft, "references": references, "prompts": prompts, "verifier": verifier, "head": head}
        | {"samples": samples, "max_new_tokens": max_new_tokens, "stop_strings": list(stop_strings)}
        | {"seed": seed, "dtype": dtype_of(sft, dtype)},
        machine=machine(),
        notes=[
            f"{counted(len(questions), 'prompt')}. Curves are exact over all subsets of the {samples} samples of a "
            f"prompt."
        ],
    )
    console.print(f"  report: {save_report(folder, content)}", highlight=False)


def _curves(results: Sequence[Ranking], counts: Sequence[int]) -> list[Panel]:
    """Panels of the score and length of the pick over n: a few rankings in each, and the oracle."""
    *ours, oracle = results
    panels: dict[str, list[Panel]] = {"score": [], "length": []}
    for start in range(0, len(ours), CURVES - 1):
        some, exponents = [*ours[start : start + CURVES - 1], oracle], [log2(count) for count in counts]
        scores = [Series(each.name, exponents, [each.best_of[count].mean for count in counts]) for each in some]
        lengths = [Series(each.name, exponents, [each.length[count] for count in counts]) for each in some]
        panels["score"].append(Panel("Score of the pick", scores, over="log₂ n"))
        panels["length"].append(Panel("Length of the pick", lengths, "tokens", over="log₂ n"))
    return panels["score"] + panels["length"]
