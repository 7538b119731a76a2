"""Fully sharded data parallelism of PyTorch itself (FSDP2): a second way to hold what no rank can hold alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


class Fsdp2Strategy(ModelParallelStrategy):
    """Every rank holds a share of parameters, gradients and optimizer's state; each layer is gathered when it is used.

    Args:
        timeout_s: seconds after which a rank that waits for another gives up.
    """

    def __init__(self, timeout_s: int = 1800) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timedelta(seconds=timeout_s))

    def setup_environment(self) -> None:
        """All ranks share the data among them."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Cut the parameters up, layer by layer; what is in no layer (embeddings, head) is gathered together."""
        mesh = self.device_mesh["data_parallel"]
        layers = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        for module in model.modules():
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)

    @contextmanager
    def whole_weights(self, model: nn.Module) -> Iterator[None]:
        """Every parameter whole on every rank, and no communication in forward passes. All ranks must take part."""
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        names = list(model.state_dict())
        for module in shards:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        # The method of an FSDP2 module cuts everything up again before it answers.
        whole: Any = model
        whole.state_dict = lambda *_, **__: {name: held[name].detach() for name in names}
        yield
        del whole.state_dict
        for module in shards:
            # The outermost one is needed again at once, in the backward pass.
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()
