"""Whether the weights of a model are sharded over ranks (ZeRO-3, FSDP2), and how many bytes they have in all."""

from torch import nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of ``model`` is sharded by ZeRO-3 or FSDP2."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def fetches_weights(model: nn.Module) -> bool:
    """Whether a forward pass fetches weights from other ranks: they are sharded and not gathered now."""
    return any(
        isinstance(weight, DTensor) or (hasattr(weight, "ds_status") and weight.ds_status.name != "AVAILABLE")
        for weight in model.parameters()
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of ``model`` when gathered."""
    return sum(getattr(weight, "ds_numel", weight.numel()) * weight.element_size() for weight in model.parameters())
