"""One rank of ``dpr fit``, and the bytes of its tensors at the peak.

python -m tests.strategies.memory CONFIG FILE
"""

import os
import sys
from pathlib import Path

from dpr_lightning.cli.main import run
from dpr_lightning.modules.memory import LiveBytes

if __name__ == "__main__":
    with LiveBytes() as live:
        run(["fit", "--config", sys.argv[1]])
    Path(f"{sys.argv[2]}.{os.environ['RANK']}").write_text(str(live.peak))
