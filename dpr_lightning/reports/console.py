"""The console of all commands."""

import sys

from rich.console import Console

# A pipe or a log file has no width, and tables need one.
console = Console() if sys.stdout.isatty() else Console(width=120)
