"""Whether the weights of a model are sharded over ranks (ZeRO-3, FSDP2), and how many bytes they have in all."""

from torch import nn
from torch.distributed.tensor import DTensor

from dpr_lightning.partitioned_weights import is_gathered, is_partitioned, whole_numel


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of ``model`` is sharded by ZeRO-3 or FSDP2."""
    return any(isinstance(weight, DTensor) or is_partitioned(weight) for weight in model.parameters())


def fetches_weights(model: nn.Module) -> bool:
    """Whether a forward pass fetches weights from other ranks: they are sharded and not gathered now."""
    return any(isinstance(weight, DTensor) or not is_gathered(weight) for weight in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of ``model`` when gathered."""
    return sum(whole_numel(weight) * weight.element_size() for weight in model.parameters())
