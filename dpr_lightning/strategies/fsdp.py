"""Fully sharded data parallelism of PyTorch itself (FSDP2): a second way to hold what no rank can hold alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule

from dpr_lightning.engine import weight_bytes
from dpr_lightning.policies import PolicyStrategy, Weights, distribute, holds_whole


class Fsdp2Strategy(ModelParallelStrategy, PolicyStrategy):
    """Every rank holds a share of parameters, gradients and optimizer's state; each layer is gathered when it is used.

    Args:
        sampling_weights: of the policy while it samples: ``whole`` on every rank, which needs no communication; in
            ``shards``, layer by layer; ``auto`` depends on their size.
        timeout_s: seconds after which a rank that waits for another gives up.
    """

    shards_layers = True

    def __init__(self, sampling_weights: Weights = "auto", timeout_s: int = 1800) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timedelta(seconds=timeout_s))
        self.sampling_weights = sampling_weights
        self._samples_whole: bool | None = None

    def setup_environment(self) -> None:
        """All ranks share the data among them."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Cut the parameters up, layer by layer; what is in no layer (embeddings, head) is gathered together."""
        distribute(model, self.device_mesh["data_parallel"])

    @contextmanager
    def gather_all(self, model: nn.Module) -> Iterator[None]:
        """Every parameter whole on every rank, and no communication in forward passes. All ranks must enter."""
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in shards:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        yield
        for module in shards:
            # The outermost one is needed again at once, in the backward pass.
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()

    @contextmanager
    def gather_for_inference(self, model: nn.Module) -> Iterator[None]:
        """The weights as ``sampling_weights`` says. All ranks must enter."""
        if self._samples_whole is None:
            weights_size = weight_bytes(model)
            self._samples_whole = holds_whole(
                self.sampling_weights, weights_size, self.root_device, "The policy to sample"
            )
        if self._samples_whole:
            with self.gather_all(model):
                yield
            return
        yield
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the outermost one stays whole after a forward pass
