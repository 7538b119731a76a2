"""``dpr pairs``: pairs of a policy's own responses, labelled by a judge."""

from pathlib import Path
from typing import Annotated

from dpr_lightning.data import Rows
from dpr_lightning.errors import counted
from dpr_lightning.experiments.pair_picks import PairsSpec, Pick
from dpr_lightning.experiments.preference_pairs import PARTS, SUMMARY, PairSources, write_pairs
from dpr_lightning.paths import ReadPath, Writes
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions


def pairs(
    policy: ReadPath,
    prompts: Rows,
    output: Annotated[
        str,
        Writes(marks=('"rejected"',)),
        Writes(suffix=SUMMARY, marks=('"flops"',)),
        Writes(suffix=PARTS, marks=('"key"',)),
    ],
    judge: str,
    pick: Pick = "best_worst",
    samples: int = 4,
    label_temperature: float = 1.0,
    sft: ReadPath | None = None,
    references: list[ReadPath] | None = None,
    reward: RewardSpec | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    stop_strings: tuple[str, ...] = (),
    batch_size: int = 256,
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    folds: ReadPath | None = None,
) -> None:
    """Write pairs of responses of a policy to learn preferences from; the same command goes on after an interruption.

    Args:
        policy: folder of the policy whose responses are paired.
        prompts: file of prompts.
        output: file for the pairs; their counts and cost come beside it, in a file that ends in .json.
        judge: what scores responses: verifier:NAME, dense, head:FOLDER, or policy:FOLDER (its log-ratio to π_SFT).
        pick: best_worst of the responses, two at random, or bradley_terry: two at random with a label that is right
            with probability σ(difference of scores / label_temperature).
        samples: responses a prompt.
        label_temperature: of bradley_terry, in units of the score.
        sft: folder of π_SFT, for the judges dense and policy.
        references: folders of earlier checkpoints of its run, for dense.
        reward: form of the dense reward; the recommended one where it is left out.
        max_new_tokens: length limit of a response.
        temperature: of the responses.
        stop_strings: texts that end a response.
        batch_size: responses decoded at once.
        limit: use the first so many prompts.
        columns: names of columns in the prompt file.
        dtype: of the models' parameters.
        seed: of the responses and picks.
        folds: folder of `dpr audit --rows train --folds 4`, such as runs/mine/audit/train.folds: each prompt is
            answered by a policy that did not learn from it, and not by `policy`.
    """
    spec = PairsSpec(judge, pick, samples, label_temperature, temperature, limit)
    sampling = SamplingOptions(max_new_tokens, batch_size=batch_size, stop_strings=stop_strings)
    sources = PairSources(policy, prompts, sft, references or [], reward, sampling, columns, dtype, seed, folds)
    with progress_bar("prompts paired", None) as advance:
        summary = write_pairs(Path(output), spec, sources, advance)
    console.print(
        f"{counted(summary['pairs'], 'pair')} of {counted(summary['prompts'], 'prompt')}: {output}\n"
        f"without a pair: {summary['equal']:,} prompts with equal responses, {summary['ties']:,} with equal scores; "
        f"{summary['unusable']:,} responses left out that are empty or spell a special token\n"
        f"cost: {summary['flops']:.3g} floating-point operations",
        highlight=False,
    )
    console.print(
        "Next, learn from them: `model.class_path: dpr_lightning.modules.SelfPlay` with `loss: dpo`, and "
        f"`data.class_path: dpr_lightning.data.PreferenceDataModule` with `train: {output}` and `opponent: {policy}`.",
        highlight=False,
        markup=False,
    )
