"""Bytes of the tensors of a real run at its peak, against which counted memory is compared."""

from typing import Any

from dpr_lightning.cli.main import run
from dpr_lightning.live_bytes import LiveBytes, tensors_in


class _AllBytes(LiveBytes):
    """Includes tensors that an operation takes: safetensors reads weights without an operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operation takes, run it, and count its results."""
        for tensor in tensors_in((args, kwargs)):
            self._note(tensor)
        return super().__torch_dispatch__(func, types, args, kwargs)


def measured_peak(config: str) -> int:
    """Bytes of tensors at the peak of ``dpr fit`` with a config."""
    with _AllBytes() as live:
        ended = run(["fit", "--config", config])
    del ended
    return live.peak
