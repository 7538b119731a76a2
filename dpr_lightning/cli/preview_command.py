"""``dpr preview``: where would this reward lead? An estimate before any reinforcement learning."""

import json
from pathlib import Path
from typing import Annotated

from dpr_lightning.data import PromptSet, Rows
from dpr_lightning.evaluation.preview import BETAS, Preview, describe, nothing_to_rank
from dpr_lightning.evaluation.reward_preview import form_name, preview_reward
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports import preview_table
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import SamplingOptions

NOT_RANKED = 4
"""Exit code where the samples rank no reward; 3 is that of `dpr audit` where none passes."""


def preview(
    sft: ReadPath,
    references: list[ReadPath],
    prompts: Rows,
    reward: RewardSpec | None = None,
    beta: float = 1.0,
    betas: list[float] | None = None,
    verifier: str | None = None,
    samples: int = 32,
    limit: int = 200,
    max_new_tokens: int = 256,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 512,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    output: Annotated[str | None, Writes(marks=('"verdict"',))] = None,
) -> int:
    """Estimate the policy that each form of the reward is heading for at each β, from samples of π_SFT alone.

    Args:
        sft: folder of π_SFT.
        references: folders of earlier checkpoints of the same run.
        prompts: file of prompts that were not trained on, with what the verifier needs.
        reward: the reward you have in mind, the recommended one by default; the table has all forms in addition.
        beta: the β you have in mind, nats of reward per nat of KL.
        betas: all β in the table.
        verifier: name of a verifier or module:function; without one, the table has length and effective sample size.
        samples: n answers a prompt.
        limit: prompts used.
        max_new_tokens: length limit of an answer.
        stop_strings: texts that end an answer.
        batch_size: sequences decoded at once.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the samples.
        output: JSON file to write.

    Returns:
        The exit code: 4 where nothing can be ranked, as no sample was right, or every one.
    """
    spec = reward if reward is not None else RewardSpec.recommended()
    tokenizer = load_tokenizer(sft)
    questions = PromptSet.load(prompts, tokenizer, columns=columns, limit=limit)
    dense = DenseReward.from_folders(sft, references, spec, dtype=dtype)
    dense.frozen.to(best_device())
    with progress_bar("samples of π_SFT", len(questions) * samples) as advance:
        run = preview_reward(
            dense,
            tokenizer,
            questions,
            SamplingOptions(max_new_tokens, batch_size=batch_size, stop_strings=stop_strings),
            verifier=verifier_named(verifier),
            num_samples=samples,
            betas=sorted({*(betas or BETAS), beta}),
            seed=seed,
            progress=advance,
        )
    return report_preview(run.preview, spec, beta, output)


def report_preview(estimate: Preview, spec: RewardSpec, beta: float, output: str | None) -> int:
    """Print a preview, and write it.

    Args:
        estimate: of every form.
        spec: the reward that is intended.
        beta: the β that is intended.
        output: JSON file; None: none.

    Returns:
        The exit code.
    """
    unranked = nothing_to_rank(estimate)
    result = estimate.to_dict() | {"unranked": unranked}
    if unranked is None:
        console.print(preview_table(result))
    words = describe(estimate, form_name(spec), beta)
    console.print(words, highlight=False, markup=False)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(result | {"verdict": words}, indent=2) + "\n")
        console.print(f"Written to {output}")
    return 0 if unranked is None else NOT_RANKED
