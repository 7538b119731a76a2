"""Runs the blocks of a page in a folder, block after block, each command in a fork of this process."""

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.gates.commands import Failure, dpr


def write_error_of_page(folder: str, steps: list[dict[str, Any]], output: Path) -> None:
    """Run the steps of a page, and write the error of :func:`run_page`."""
    output.write_text(run_page(folder, steps), encoding="utf-8")


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
