"""What the configuration of a model says of it: its size and dtype, from which defaults follow."""

from dataclasses import dataclass

from dpr_lightning.errors import InputError, counted
from dpr_lightning.policies import PolicySpec
from dpr_lightning.policies.adapters import is_adapter, resolve_adapter
from dpr_lightning.policies.outline import config_of, outline_policy
from dpr_lightning.policies.policy_spec import Dtype
from dpr_lightning.policies.weights_dtype import automatic_dtype, saved_dtype

SMALL = 1_000_000_000
"""Parameters below which a model learns at a higher rate."""
LARGE = 3_000_000_000
"""Parameters from which adapters are trained by default: weights, gradients and AdamW take 16 bytes a parameter."""
LORA_RANK = 16


@dataclass(frozen=True)
class BaseModel:
    """A base model.

    Attributes:
        source: hub id or folder.
        parameters: their number; None where only an adapter is there.
        saved_dtype: of the weights in its files; None: not said.
    """

    source: str
    parameters: int | None
    saved_dtype: Dtype | None

    @classmethod
    def read(cls, source: str, *, trust_remote_code: bool = False) -> "BaseModel":
        """Read the configuration of a hub id or folder; weights are not read.

        Raises:
            InputError: there is none.
        """
        spec = PolicySpec(source=source, trust_remote_code=trust_remote_code)
        outline = outline_policy(spec, trainable=False)
        parameters = None if is_adapter(source) else sum(weight.numel() for weight in outline.parameters())
        return cls(source, parameters, saved_dtype(config_of(resolve_adapter(spec)[0])))

    @property
    def is_small(self) -> bool:
        """Whether a higher learning rate is the default."""
        return self.parameters is None or self.parameters < SMALL

    @property
    def default_rank(self) -> int | None:
        """Rank of adapters; None: every parameter is trained."""
        return LORA_RANK if self.parameters is not None and self.parameters >= LARGE else None

    def dtype(self) -> tuple[Dtype, str]:
        """The dtype that ``auto`` is on this machine, and the reason in a few words.

        Half precision trains with float32 copies in the optimizer.
        """
        return automatic_dtype(self.saved_dtype)

    def describe(self) -> str:
        """One line: name and size."""
        if self.parameters is None:
            return f"{self.source} (an adapter)"
        count = f"{self.parameters / 1e9:.2f}B" if self.parameters >= SMALL else f"{self.parameters / 1e6:.1f}M"
        return f"{self.source} ({count} parameters)"


def check_rank(rank: int) -> None:
    """Refuse a rank of adapters below 1.

    Raises:
        InputError: it is.
    """
    if rank < 1:
        raise InputError(f"`lora`: found {counted(rank, 'dimension')}. The rank of adapters is at least 1.")
