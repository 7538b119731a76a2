"""``dpr clean``: the training rows of a run without those that a person marked as wrong."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpr_lightning.cli.option_parser import OptionParser
from dpr_lightning.errors import InputError

SUFFIX = ".jsonl"


def clean(arguments: Sequence[str]) -> None:
    """Write the training rows of a run, with all their columns, but for flagged rows.

    Raises:
        InputError: an option is wrong, a flagged row is not among the training rows, or the output is an existing file.
    """
    parser = OptionParser(
        "clean",
        "The training rows of a run without those that you marked as wrong. Open check/audit.html in the run's folder, "
        "or the page of `dpr audit --rows train`, mark rows, and export flagged.jsonl. Nothing is dropped without that "
        "file.",
    )
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument("--flagged", required=True, metavar="FILE", help="flagged.jsonl, exported from the page")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL file to write, which must not exist")
    options = parser.parse_args(arguments)

    from dpr_lightning.data import open_rows
    from dpr_lightning.data.cleaning import read_flagged, write_cleaned
    from dpr_lightning.data.rows import Rows
    from dpr_lightning.errors import counted
    from dpr_lightning.lightning_cli.path_checks import protected
    from dpr_lightning.paths import PathUse, Reads, Writes, path_uses
    from dpr_lightning.reports.console import console
    from dpr_lightning.run_manifest import RunManifest

    manifest = RunManifest.load(options.run)
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
        flagged = read_flagged(options.flagged)
        cleaned = write_cleaned(open_rows(manifest.train), flagged, output)
    copies = (
        f", {cleaned.copies:,} {'exact copy' if cleaned.copies == 1 else 'exact copies'} among them"
        if cleaned.copies
        else ""
    )
    console.print(
        f"{output}: {counted(cleaned.remaining, 'row')}. {counted(cleaned.dropped, 'row')} dropped{copies}; "
        f"{counted(len(flagged), 'row')} flagged.\nNext: {_next_command(manifest, output)}",
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
