"""``python -m tests.run_commands < commands.json``: runs `dpr` with each list of arguments, in order, in this folder.

Each command is a fork of one process that has imported everything, so that a dozen commands pay for one import.
"""

import json
import sys
from pathlib import Path

import dpr_lightning.callbacks
import dpr_lightning.data
import dpr_lightning.lightning_cli.dpr_cli
import dpr_lightning.modules  # noqa: F401
from tests.gates.commands import Failure, dpr

if __name__ == "__main__":
    for number, command in enumerate(json.load(sys.stdin)):
        try:
            dpr(command["arguments"], Path(f"command_{number}"), codes=command["codes"])
        except Failure as failure:
            sys.exit(str(failure))
