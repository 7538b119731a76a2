"""Ways to spread a policy over ranks: DeepSpeed ZeRO and FSDP2, for GPUs and, to try things out, for CPUs."""

from dpr_lightning.strategies.fsdp import Fsdp2Strategy
from dpr_lightning.strategies.zero import Zero1Strategy, Zero2Strategy, Zero3Strategy, ZeroStrategy

__all__ = ["Fsdp2Strategy", "Zero1Strategy", "Zero2Strategy", "Zero3Strategy", "ZeroStrategy"]
