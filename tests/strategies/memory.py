"""One rank of ``dpr fit``, and the bytes of its tensors at the peak.

python -m tests.strategies.memory CONFIG FILE
"""

import os
import sys
from pathlib import Path

import torch

from dpr_lightning.cli.main import run
from dpr_lightning.live_bytes import LiveBytes

resize = torch.UntypedStorage.resize_


def resize_and_tell(storage: torch.UntypedStorage, length: int) -> torch.UntypedStorage:
    """What no operation of tensors tells."""
    resize(storage, length)
    live.resized(storage)
    return storage


if __name__ == "__main__":
    torch.UntypedStorage.resize_ = resize_and_tell  # type: ignore[method-assign]
    with LiveBytes() as live:
        run(["fit", "--config", sys.argv[1]])
    Path(f"{sys.argv[2]}.{os.environ['RANK']}").write_text(str(live.peak))
