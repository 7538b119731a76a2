"""``python -m tests.pages.run_pages < pages.json``: runs the blocks of pages, each page in a folder, block after block.

Each page is a fork of one process that has imported everything, and so is each command, so that all pages pay for one
import. Writes one JSON object a page to standard output: ``{"page": …, "error": …}``, the error empty where all ran.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import dpr_lightning.callbacks
import dpr_lightning.data
import dpr_lightning.lightning_cli.dpr_cli
import dpr_lightning.modules  # noqa: F401
from tests.gates.commands import Failure, dpr


def run_page(folder: str, steps: list[dict[str, Any]]) -> str:
    """Run the steps of a page in its folder.

    Returns:
        the error of the first step that failed, and its line; empty if none did.
    """
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    names: dict[str, Any] = {"__name__": "page"}
    for step in steps:
        try:
            if "file" in step:
                Path(step["file"]).write_text(step["code"], encoding="utf-8")
            elif "code" in step:
                with contextlib.redirect_stdout(sys.stderr):
                    exec(compile(step["code"], f"line {step['line']}", "exec"), names)
            else:
                dpr(step["arguments"], Path(f"line_{step['line']}"), codes=step["codes"])
        except Failure as failure:
            return f"line {step['line']}: {failure}"
        except Exception:
            return f"line {step['line']}: {traceback.format_exc()}"
    return ""


def _child(folder: str, steps: list[dict[str, Any]], result: Any) -> None:
    result.send(run_page(folder, steps))


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for page in json.load(sys.stdin):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(page["folder"], page["steps"], sender))
        process.start()
        sender.close()
        try:
            error = receiver.recv()
        except EOFError:
            error = "the page ended its process"
        process.join()
        print(json.dumps({"page": page["page"], "error": error}), flush=True)
