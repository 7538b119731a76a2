"""Wrong inputs of every kind, and what `dpr` says to each. Writes the table of docs/reliability.md:

python -m tests.reliability.bad_inputs docs/reliability.md
"""

import re
import sys
import tempfile
from pathlib import Path

from tests.reliability.bad_audit import AUDIT_CASES
from tests.reliability.bad_clean import CLEAN_CASES
from tests.reliability.bad_data import DATA_CASES
from tests.reliability.bad_options import OPTION_CASES
from tests.reliability.bad_pairs import PAIR_CASES
from tests.reliability.bad_policies import POLICY_CASES
from tests.reliability.kit import Answer, run_case
from tests.workspace import make_workspace

BEGIN, END = "<!-- bad inputs: written by tests/reliability/bad_inputs.py -->", "<!-- end of bad inputs -->"
CASES = DATA_CASES | POLICY_CASES | OPTION_CASES | CLEAN_CASES | PAIR_CASES | AUDIT_CASES


def table(folder: Path) -> str:
    """The message for every case, in Markdown."""
    workspace = make_workspace(folder / "healthy")
    parts = [BEGIN]
    for group, cases in CASES.items():
        parts += ["", f"| {group} | `dpr` says |", "|---|---|"]
        for number, (name, case) in enumerate(cases.items()):
            answer = run_case(case, folder / f"{group[:4]}{number}" / "case", workspace)
            parts.append(row(name, answer, folder))
    return "\n".join([*parts, "", END])


def row(name: str, answer: Answer, folder: Path) -> str:
    """A row of the table; paths are reduced to their names."""
    text = re.sub(r"^dpr \w+: ", "", answer.message.replace(str(folder), ""))
    text = re.sub(r"(?<=['\s(])/(\S+/)+", "", f" {text}")
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return f"| {name} | {text if len(text) <= 320 else text[:319] + '…'} |"


def write(document: Path) -> None:
    """Replace the table in ``document``."""
    text = document.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    with tempfile.TemporaryDirectory() as folder:
        document.write_text(before + table(Path(folder)) + after)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
