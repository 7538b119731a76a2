"""``python -m tests.gates record FILE`` before a refactoring, ``python -m tests.gates compare FILE`` after each step.

One process, one thread, on the CPU. ``compare`` prints a line for each gate and exits with 1 where results differ or
a gate failed, with 2 where the record is from another environment.
"""

import os

# Before torch is imported.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}

import argparse
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

from tests.gates.cases import GATES, Runs
from tests.gates.commands import Failure
from tests.gates.record import Values, Verdict, judge, read, write


def main() -> int:
    """Run the gates that the command line selects; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gates", description=__doc__)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="the record, a JSON file")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help=f"names or patterns: {', '.join(GATES)}"
    )
    parser.add_argument(
        "--bound", type=float, help="accept floats that differ by at most this, absolutely or relatively"
    )
    options = parser.parse_args()
    try:
        recorded = read(options.file) if options.action == "compare" else {}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    names = [name for name in recorded or GATES if any(fnmatch(name, pattern) for pattern in options.only)]
    if not names:
        parser.error(f"no gate is named {' or '.join(options.only)}; gates are {', '.join(GATES)}")
    results: dict[str, Values] = {}
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        runs = Runs(Path(folder))
        for name in names:
            started = time.monotonic()
            try:
                if name not in GATES:
                    raise Failure("is in the record, and there is no such gate any more")
                results[name] = GATES[name](runs)
                verdict = Verdict(True, f"{len(results[name])} values")
                if options.action == "compare":
                    verdict = judge(recorded[name], results[name], options.bound)
            except Failure as failure:
                verdict = Verdict(False, f"failed: {failure}")
            verdicts.append(verdict)
            print(f"{name} ({time.monotonic() - started:.1f} s): {verdict.line}", flush=True)
    passed = all(verdict.passed for verdict in verdicts)
    if options.action == "record" and passed:
        write(options.file, results)
    elif not passed:
        print(f"{sum(not verdict.passed for verdict in verdicts)} of {len(names)} gates did not pass.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
