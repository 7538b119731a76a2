"""DeepSpeed ZeRO with the token counts, precision and accumulation that this package's losses rely on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from dpr_lightning.engine import weight_bytes
from dpr_lightning.errors import InputError
from dpr_lightning.policies import PolicyStrategy, Weights, build_sharded, holds_whole

Offload = Literal["nothing", "optimizer", "everything"]


class ZeroStrategy(DeepSpeedStrategy, PolicyStrategy):
    """What the three stages share; configs name one of :class:`Zero1Strategy` to :class:`Zero3Strategy`.

    Beside Lightning's own strategy: an accumulated loss is not divided a second time, an epoch may close with a step of
    fewer micro-batches, and it runs on CPUs too, through gloo and without a compiler, as long as nothing is offloaded.

    Args:
        stage: what is sharded: 1 optimizer state, 2 gradients too, 3 parameters too.
        offload: what lies in host memory (or on NVMe) between uses: the optimizer's state, or that and the parameters.
        nvme_path: folder on a local disk that takes what is offloaded, instead of host memory.
        bucket_size: elements reduced or gathered at once; a larger bucket takes memory and saves messages.
        persistence_threshold: parameters of fewer elements are left whole on every rank at stage 3.
        timeout_s: seconds after which a rank that waits for another gives up.
        options: further ones of :class:`lightning.pytorch.strategies.DeepSpeedStrategy`.
    """

    holds_gradients = True

    def __init__(
        self,
        stage: int,
        offload: Offload = "nothing",
        nvme_path: str | None = None,
        bucket_size: int = 200_000_000,
        persistence_threshold: int = 100_000,
        timeout_s: int = 1800,
        **options: Any,
    ) -> None:
        if offload == "everything" and stage < 3:
            raise InputError(
                f"ZeRO-{stage} keeps parameters whole: offload the `optimizer` alone, or use Zero3Strategy."
            )
        if nvme_path is not None and offload == "nothing":
            raise InputError("`nvme_path` is where offloaded state goes; say what to `offload`.")
        offload_device = "cpu" if nvme_path is None else "nvme"
        super().__init__(
            stage=stage,
            offload_optimizer=offload != "nothing",
            offload_parameters=offload == "everything",
            offload_optimizer_device=offload_device,
            offload_params_device=offload_device,
            nvme_path=nvme_path if nvme_path is not None else "/local_nvme",
            allgather_bucket_size=bucket_size,
            reduce_bucket_size=bucket_size,
            timeout=timedelta(seconds=timeout_s),
            # Otherwise Lightning asks the DataModule for its batches before there is a policy to sample them from.
            **{"logging_batch_size_per_gpu": 1} | options,
        )
        assert isinstance(self.config, dict)
        if stage == 3:
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = persistence_threshold

    def setup_environment(self) -> None:
        """Let DeepSpeed run where there is no GPU."""
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        _use_cpu()
        assert self.parallel_devices is not None
        # DeepSpeed tells ranks apart by the index of their device.
        self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices))]
        os.environ.setdefault("LOCAL_SIZE", str(len(self.parallel_devices)))
        super(DeepSpeedStrategy, self).setup_environment()

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: Lightning counts micro-batches. The last step of an epoch may have fewer of them than the others."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Nothing: the engine knows by itself when gradients are to be summed over ranks."""
        yield

    def setup(self, trainer: Trainer) -> None:
        """Let the engine take losses as they are, and step where Lightning does."""
        super().setup(trainer)
        engine = self.deepspeed_engine
        inner = engine.backward

        def backward(loss: Tensor, **options: Any) -> None:
            last = not trainer.fit_loop._should_accumulate()
            engine.set_gradient_accumulation_boundary(last)
            # Lightning has divided the loss by the number of micro-batches; the engine would again (Lightning#6170).
            inner(loss, scale_wrt_gas=False, **options)
            if not last:
                engine.step()

        engine.backward = backward

    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping; the engine holds gradients in shards."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return None if norm is None else float(norm)


class Zero1Strategy(ZeroStrategy):
    """ZeRO-1: every rank holds a share of the optimizer's state.

    Args:
        offload: ``optimizer`` keeps it in host memory.
        options: of :class:`ZeroStrategy`.
    """

    def __init__(self, offload: Offload = "nothing", **options: Any) -> None:
        super().__init__(1, offload, **options)


class Zero2Strategy(ZeroStrategy):
    """ZeRO-2: every rank holds a share of gradients and optimizer's state.

    Args:
        offload: ``optimizer`` keeps the latter in host memory.
        options: of :class:`ZeroStrategy`.
    """

    def __init__(self, offload: Offload = "nothing", **options: Any) -> None:
        super().__init__(2, offload, **options)


class Zero3Strategy(ZeroStrategy):
    """ZeRO-3: every rank holds a share of parameters, gradients and optimizer's state.

    Args:
        offload: ``optimizer`` or ``everything`` lies in host memory or, with ``nvme_path``, on a disk.
        sampling_weights: of the policy while it samples: ``whole`` on every rank, which needs no communication; in
            ``shards``, layer by layer; ``auto`` depends on their size.
        options: of :class:`ZeroStrategy`.
    """

    def __init__(self, offload: Offload = "nothing", sampling_weights: Weights = "auto", **options: Any) -> None:
        super().__init__(3, offload, **options)
        self.sampling_weights = sampling_weights
        self._samples_whole: bool | None = None

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Policies that are built here are sharded as they are built; frozen ones are not."""
        self._init_config_if_needed()
        assert isinstance(self.config, dict)
        with build_sharded(self.config):
            yield

    @contextmanager
    def gather_all(self, model: nn.Module) -> Iterator[None]:
        """Every parameter whole on every rank, and no communication in forward passes. All ranks must enter."""
        import deepspeed

        engine = self.model
        if isinstance(engine, deepspeed.DeepSpeedEngine):
            with deepspeed.runtime.zero.unwrap_model_for_generation(engine):
                yield
        else:
            with deepspeed.zero.GatheredParameters(list(model.parameters())):
                yield

    @contextmanager
    def gather_for_inference(self, model: nn.Module) -> Iterator[None]:
        """The weights as ``sampling_weights`` says. All ranks must enter."""
        if self._samples_whole is None:
            weights_size = weight_bytes(model)
            self._samples_whole = holds_whole(
                self.sampling_weights, weights_size, self.root_device, "The policy to sample"
            )
        with self.gather_all(model) if self._samples_whole else nullcontext():
            yield


def _use_cpu() -> None:
    """DeepSpeed without CUDA, and without the extension for shared memory that it would compile."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
