"""``dpr clean``: the training rows of a run without what looks wrong in them."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dpr_lightning.cli.libraries import settle_libraries
from dpr_lightning.cli.option_parser import OptionParser
from dpr_lightning.errors import InputError

SUFFIX = ".jsonl"
How = Literal["drop", "mask", "weight", "relabel"]
SAMPLES = 16


def clean(arguments: Sequence[str]) -> None:
    """Write the training rows of a run, with all their columns; flagged ones are dropped or changed.

    Raises:
        InputError: an option is wrong, a flagged row is not among the training rows, or the output is an existing file.
    """
    parser = OptionParser(
        "clean",
        "The training rows of a run without what looks wrong in them. Open the page of `dpr audit --run FOLDER --rows "
        "train`, or check/audit.html in the run's folder, mark rows, and export flagged.jsonl; or take the first rows "
        "of the list beside that page, audit/train.listed.jsonl, with --top. Nothing else is changed, and the "
        "training rows themselves never.",
    )
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument("--flagged", required=True, metavar="FILE", help="flagged.jsonl, exported from the page")
    parser.add_argument("--top", type=int, metavar="N", help="only the first N rows of that file (default: all)")
    parser.add_argument(
        "--how",
        choices=get_args(How),
        default="drop",
        help="drop: rows are left out; mask: their suspicious parts are read and not learnt (loss_spans); weight: the "
        "loss of these parts is weighted by σ((threshold − suspicion) / temperature); relabel: a row that the verifier "
        "rejects gets the likeliest accepted answer that is sampled from a policy of `dpr audit --folds` which did not "
        "learn from it, and is left out where there is none",
    )
    parser.add_argument("--threshold", type=float, metavar="NATS", help="of --how weight (default: median suspicion)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="NATS", help="of --how weight (default: 1)")
    parser.add_argument("--samples", type=int, metavar="N", help=f"of --how relabel, a row (default: {SAMPLES})")
    parser.add_argument("--verifier", help="of --how relabel: what accepts answers (default: that of the run)")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL file to write, which must not exist")
    options = parser.parse_args(arguments)
    if options.how != "weight" and (options.threshold is not None or options.temperature != 1.0):
        raise InputError("`--threshold` and `--temperature` are options of `--how weight` alone. Leave them out.")
    if options.how != "relabel" and (options.samples is not None or options.verifier is not None):
        raise InputError("`--samples` and `--verifier` are options of `--how relabel` alone. Leave them out.")

    from dpr_lightning.run_manifest import RunManifest

    manifest = RunManifest.load(options.run)
    settle_libraries()
    from dpr_lightning.data import open_rows
    from dpr_lightning.data.cleaning import Change, change_of, read_flagged, write_cleaned
    from dpr_lightning.data.rows import Rows
    from dpr_lightning.errors import counted
    from dpr_lightning.lightning_cli.path_checks import protected
    from dpr_lightning.paths import PathUse, Reads, Writes, path_uses
    from dpr_lightning.reports.console import console

    output = Path(options.output).expanduser()
    if output.suffix != SUFFIX:
        raise InputError(f"`--output` {output} is written as JSON lines. Write a name in {SUFFIX}.")
    uses = [
        PathUse("output", output, Writes()),
        PathUse("flagged", Path(options.flagged).expanduser(), Reads()),
        *path_uses(Rows, manifest.train, "the run's train"),
        *path_uses(Rows, manifest.held_out, "the run's held_out"),
    ]
    with protected(uses):
        if output.exists():
            raise InputError(f"`--output` {output} exists already, and rows are not overwritten. Name another file.")
        if not Path(options.flagged).expanduser().exists():
            raise InputError(f"`--flagged`: there is no file {options.flagged}. {_how_to_flag(manifest)}")
        flagged = read_flagged(options.flagged, options.top)
        if options.how == "relabel":
            from dpr_lightning.cli.relabelled_rows import new_answers

            samples = SAMPLES if options.samples is None else options.samples
            answers = new_answers(manifest, flagged, verifier=options.verifier or manifest.verifier, samples=samples)
            change: Change = lambda row: answers.get(row.content)  # noqa: E731
        else:
            change = change_of(options.how, flagged, options.threshold, options.temperature)
        cleaned = write_cleaned(open_rows(manifest.train), flagged, output, change, manifest.columns)
    copies = (
        f", {cleaned.copies:,} {'exact copy' if cleaned.copies == 1 else 'exact copies'} among them"
        if cleaned.copies
        else ""
    )
    dropped = f"{counted(cleaned.dropped, 'row')} dropped"
    done = {
        "drop": dropped,
        "mask": f"Parts of {counted(cleaned.changed, 'row')} masked",
        "weight": f"Parts of {counted(cleaned.changed, 'row')} weighted",
        "relabel": f"{counted(cleaned.changed, 'row')} answered anew, {dropped} that no accepted sample answers",
    }[options.how]
    unchanged = counted(cleaned.unchanged, "row")
    left = f" {unchanged} of them had no part to change." if cleaned.unchanged else ""
    if options.how == "relabel" and cleaned.unchanged:
        left = f" Not changed, since the verifier accepts the answer: {unchanged}."
    console.print(
        f"{output}: {counted(cleaned.total, 'row')}. {done}{copies}; {counted(len(flagged), 'row')} flagged.{left}"
        f"\nNext: {_next_command(manifest, output)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _how_to_flag(manifest: Any) -> str:
    """Where rows of a run are marked: the pages of its audits, or the commands that write one."""
    from dpr_lightning.run_manifest import AUDIT, AUDIT_OF_TRAINED

    pages = [manifest.folder / audit.with_suffix(".html") for audit in (AUDIT_OF_TRAINED, AUDIT)]
    present = [str(page) for page in pages if page.is_file()]
    if present:
        return f"Mark rows on {' or '.join(present)}, and save them with its button “Export flagged.jsonl”."
    run = shlex.quote(str(manifest.folder))
    return (
        f"`dpr audit --run {run} --rows train` and `dpr check --run {run}` write a page; mark rows there, and save "
        "them with its button “Export flagged.jsonl”."
    )


def _next_command(manifest: Any, output: Path) -> str:
    """`dpr sft` on the rows that remain, with the options that the data need."""
    parts = ["dpr", "sft", "--model", str(manifest.policy_options.get("source", "MODEL")), "--train", str(output)]
    if manifest.columns:
        parts += ["--columns", ",".join(f"{name}={column}" for name, column in manifest.columns.items())]
    if manifest.verifier:
        parts += ["--verifier", manifest.verifier]
    return shlex.join(parts)
