"""What a run came from: the command, the commit of the code around it, and versions."""

import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

PACKAGES = ("dpr_lightning", "torch", "transformers", "lightning")


def provenance(arguments: Sequence[str]) -> dict[str, Any]:
    """The facts about this process that a record of its run should have.

    Args:
        arguments: of ``dpr``.

    Returns:
        ``command``; ``versions`` by package; ``git`` with ``commit`` and ``dirty`` (whether tracked files differ from
        it), where the working directory is in a repository.
    """
    facts: dict[str, Any] = {
        "command": shlex.join(["dpr", *arguments]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        changes = _git("status", "--porcelain", "--untracked-files=no")
        facts["git"] = {"commit": commit, "dirty": changes is None or bool(changes)}
    return facts


def _git(*arguments: str) -> str | None:
    """The output of a git command in the working directory; None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
