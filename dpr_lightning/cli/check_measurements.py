"""The measurements of ``dpr check``: an audit and a preview, of the same samples of π_SFT."""

from pathlib import Path
from typing import Annotated

from dpr_lightning.cli.audit_command import MARKS, audit_held_out
from dpr_lightning.cli.preview_command import report_preview
from dpr_lightning.cli.suspicious_rows import PAGE
from dpr_lightning.data import PromptSet, Rows
from dpr_lightning.evaluation.preview import BETAS
from dpr_lightning.evaluation.reward_preview import default_forms, preview_samples
from dpr_lightning.evaluation.scored_samples import ScoredSamples, sample_and_score
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.paths import REPORT_MARKS, ReadPath, Writes
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.policies.inference_policy import best_device
from dpr_lightning.progress import progress_bar
from dpr_lightning.reports.console import console
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.workflow.check_extent import AUDIT_SAMPLES

BETA = 1.0


def measure(
    sft: ReadPath,
    reference: ReadPath,
    references: list[ReadPath],
    rows: Rows,
    audit: Annotated[str, Writes(marks=MARKS), Writes(marks=REPORT_MARKS, suffix=PAGE)],
    preview: Annotated[str | None, Writes(marks=('"verdict"',))],
    verifier: str | None,
    prompts: int,
    samples: int,
    max_new_tokens: int,
    columns: dict[str, str] | None,
    seed: int,
) -> None:
    """Audit references, and preview one of them where there is a verifier.

    Args:
        sft: folder of π_SFT.
        reference: folder of the reference that is previewed.
        references: those that are audited.
        rows: demonstrations that were not trained on.
        audit: JSON file of the audit; its page is beside it.
        preview: JSON file of the preview; None: there is none.
        verifier: name of a verifier or module:function.
        prompts: rows used.
        samples: answers a prompt.
        max_new_tokens: length limit of an answer.
        columns: names of columns.
        seed: of samples, corruptions and the bootstrap.
    """
    options = SamplingOptions(max_new_tokens)
    in_audit = min(AUDIT_SAMPLES, samples)
    count = in_audit if preview is None else samples
    console.rule("samples of π_SFT")
    sampled = _sampled(sft, reference, rows, options, verifier, prompts, count, columns, seed)
    console.rule("audit")
    audit_held_out(
        sft, references, rows, options, verifier=verifier, samples=in_audit, limit=prompts, columns=columns, seed=seed,
        path=Path(audit), sampled={reference: sampled},
    )  # fmt: skip
    if preview is not None:
        console.rule("preview")
        spec = RewardSpec.recommended()
        estimate = preview_samples(sampled, default_forms(spec), sorted({*BETAS, BETA}), seed)
        report_preview(estimate, spec, BETA, preview)


def _sampled(
    sft: str,
    reference: str,
    rows: Rows,
    options: SamplingOptions,
    verifier: str | None,
    prompts: int,
    samples: int,
    columns: dict[str, str] | None,
    seed: int,
) -> ScoredSamples:
    """Samples of π_SFT, scored against a reference; the models leave the memory afterwards."""
    tokenizer = load_tokenizer(sft)
    questions = PromptSet.load(rows, tokenizer, columns=columns, limit=prompts)
    reward = DenseReward.from_folders(sft, [reference])
    reward.frozen.to(best_device())
    with progress_bar("answers, sampled and scored", 2 * len(questions) * samples) as advance:
        return sample_and_score(
            reward, tokenizer, questions, options, verifier=verifier_named(verifier), num_samples=samples, seed=seed,
            progress=advance, scored=advance,
        )  # fmt: skip
