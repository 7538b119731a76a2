"""``dpr check``: preview and audit of a run; is its reward worth training on?"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dpr_lightning.cli.libraries import settle_libraries
from dpr_lightning.cli.option_parser import OptionParser
from dpr_lightning.errors import InputError

EXIT_CODES = {"train": 0, "nothing_found": 3, "not_ranked": 4}


def check(arguments: Sequence[str]) -> int:
    """Run both on the rows that SFT did not learn from, and write ``check/`` into the folder of the run.

    Returns:
        exit code: 0: train on it; 3: nothing was found; 4: no answer, or every one, was right.

    Raises:
        InputError: an option is wrong, or the run held out no rows.
    """
    parser = OptionParser(
        "check",
        "Is the reward of a run worth training on? Exit code 0: yes; 3: nothing was found; 4: no answer was right, or "
        "every one, so that nothing can be ranked.",
    )
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument("--verifier", help="what scores answers (default: that of the run)")
    parser.add_argument(
        "--prompts", type=int, metavar="N", help="held-out rows used (default: 100; fewer without a GPU)"
    )
    parser.add_argument("--samples", type=int, help="answers to each (default: 16; fewer without a GPU)")
    parser.add_argument("--max_new_tokens", type=int, help="of an answer (default: the longest demonstrated)")
    parser.add_argument("--reference", metavar="SHARE", help="reference by its share of SFT (default: nearest to 0.25)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    from dpr_lightning.run_manifest import AUDIT, PREVIEW, RunManifest

    manifest = RunManifest.load(options.run)
    rows = manifest.held_out
    if rows is None:
        raise InputError(
            f"{options.run} held out no rows, and a check on rows that were trained on would flatter the reward. Train "
            "again with --validation."
        )
    share = options.reference or manifest.reference_share
    reference = manifest.reference_at(share)

    settle_libraries()
    from dpr_lightning.cli.check_measurements import measure
    from dpr_lightning.data import open_rows
    from dpr_lightning.evaluation.reward_preview import default_forms, form_name
    from dpr_lightning.lightning_cli.path_checks import guarded
    from dpr_lightning.policies import PolicySpec
    from dpr_lightning.policies.inference_policy import best_device
    from dpr_lightning.policies.outline import outline_policy
    from dpr_lightning.reports.console import console
    from dpr_lightning.rewards import RewardSpec
    from dpr_lightning.workflow import check_size, combine

    verifier = options.verifier or manifest.verifier
    limit = options.max_new_tokens or manifest.longest_demonstration or 256
    audit_file, preview_file = manifest.folder / AUDIT, manifest.folder / PREVIEW
    count = sum(1 for _ in open_rows(rows))
    outline = outline_policy(PolicySpec(source=manifest.sft), trainable=False)
    extent = check_size(
        count,
        sum(weight.numel() for weight in outline.parameters()),
        (manifest.longest_demonstration or limit, limit),
        tuple(each for each in manifest.references if each != share),
        prompts=options.prompts,
        samples=options.samples,
        on_gpu=best_device().type != "cpu",
    )
    if note := extent.describe(count):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    guarded(measure, [])(
        sft=manifest.sft,
        reference=reference,
        references=[folder for each, folder in manifest.references.items() if each not in extent.left_out],
        rows=rows,
        audit=str(audit_file),
        preview=None if verifier is None else str(preview_file),
        verifier=verifier,
        prompts=extent.prompts,
        samples=extent.samples,
        max_new_tokens=limit,
        columns=manifest.columns,
        seed=options.seed,
    )
    previewed = None if verifier is None else _read(preview_file)
    forms = {form_name(spec): asdict(spec) for spec in default_forms(RewardSpec.recommended()).values()}
    result = combine(_read(audit_file), previewed, forms, share)
    result = replace(result, reasons=[*_on_sft(manifest.finished_sft), *result.reasons, *([note] if note else [])])
    result.save(manifest.folder)
    console.rule("check")
    for reason in result.reasons:
        console.print(reason, highlight=False, markup=False, soft_wrap=True)
    run = shlex.quote(options.run)
    console.print(
        f"Wrong rows? Mark them on {audit_file.with_suffix('.html')}, export flagged.jsonl there, and write the rest "
        f"of the training rows: dpr clean --run {run} --flagged flagged.jsonl --output cleaned.jsonl. The page has "
        f"rows that were not trained on; for the others: dpr audit --run {run} --rows train (with --folds 4 policies "
        "that did not learn from a row score it too)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    code = EXIT_CODES[result.outcome]
    verdict = (
        f"Worth training on. Next: dpr rl --run {run}"
        if code == 0
        else "Not worth training on. Next: train SFT for longer (--epochs), on more or cleaner rows, and check again. "
        f"To see what training on it does: dpr rl --run {run} --anyway"
    )
    console.print(verdict, highlight=False, markup=False, soft_wrap=True)
    return code


def _on_sft(noted: Mapping[str, str] | None) -> list[str]:
    """A warning where more steps of SFT may give more than the reward would."""
    if noted is None or noted["state"] != "unfinished":
        return []
    return [f"{noted['reason']} Reinforcement learning is worth comparing with that."]


def _read(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content
