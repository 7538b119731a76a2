"""Answers to the next prompts, written while the policy learns from those to the last ones."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import torch
from torch import nn

from dpr_lightning.engine import fetches_weights, inside_of_adapters
from dpr_lightning.errors import InputError, counted
from dpr_lightning.policies import AUTO, PolicySpec, build_policy, merged_weights, tied_names, untie, untied_names
from dpr_lightning.policies.policy_spec import DTYPES
from dpr_lightning.types import Rollouts

Write = Callable[[nn.Module, Callable[[], bool]], Rollouts]


class RolloutPrefetcher:
    """A copy of the policy that writes in a separate thread, with the weights that the policy had when it began.

    What it has written is as old as the steps that the policy took meanwhile; its ``logprob`` is of the copy, so that a
    ratio to it corrects what is learnt.

    Args:
        source: folder of a policy with the same layers, such as π_SFT.
        attention: transformers' attention implementation.
        device: where the copy lies; None: where the policy does.
    """

    def __init__(self, source: str, attention: str = AUTO, device: torch.device | None = None) -> None:
        self._source, self._attention, self._device = source, attention, device
        self._copy: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[Rollouts] | None = None
        self._key: Hashable | None = None
        self._unwanted = Event()

    def begin(self, key: Hashable, policy: nn.Module, write: Write) -> None:
        """Copy the weights of ``policy`` and let the copy ``write``; what was begun before is forgotten.

        Args:
            key: to :meth:`take` it by.
            policy: to copy.
            write: given the copy, and a function that says whether nobody wants the rollout any more, in which case
                it may raise.

        Raises:
            InputError: the policy's weights are in shards.
        """
        self.forget()
        copy = self._with_weights_of(policy)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "draws-ahead")
        self._unwanted.clear()
        self._key, self._running = key, self._thread.submit(self._sampled, copy, write)

    def take(self, key: Hashable) -> Rollouts | None:
        """What was begun for ``key``, as soon as it is finished; None: nothing was, or it was forgotten.

        Raises whatever writing raised.
        """
        if self._running is None or self._key != key:
            self.forget()
            return None
        running, self._running = self._running, None
        return running.result()

    def forget(self) -> None:
        """Discard the answers that are being sampled, and wait until that has stopped."""
        if self._running is not None:
            self._unwanted.set()
            wait([self._running])
            self._running = None

    def close(self) -> None:
        """End the thread and let the copy go; it may begin again."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown()
        self._thread, self._copy, self._stream = None, None, None

    @torch.no_grad()
    def _with_weights_of(self, policy: nn.Module) -> Any:
        if fetches_weights(policy):
            raise InputError(
                "`draw_ahead` copies whole weights, and the policy's are in shards while it is sampled from. Set "
                "`sampling_weights: whole` of the strategy, or leave `draw_ahead` out."
            )
        weight = next(policy.parameters())
        if self._copy is None:
            dtype = next(name for name, value in DTYPES.items() if value == weight.dtype)
            spec = PolicySpec(source=self._source, dtype=dtype, attention=self._attention)
            self._copy = build_policy(spec, trainable=False)[0].to(self._device or weight.device)
            # What ends an answer is the policy's to say.
            self._copy.generation_config = inside_of_adapters(policy).generation_config
        with merged_weights(policy) as (base, weights):
            if untied_names(base, weights):
                untie(self._copy, tied_names(self._copy))
            for name, copied in self._copy.named_parameters():
                copied.copy_(weights[name])
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)  # the thread's stream does not wait for ours
        return self._copy

    def _sampled(self, copy: nn.Module, write: Write) -> Rollouts:
        device = next(copy.parameters()).device
        if device.type != "cuda":
            return write(copy, self._unwanted.is_set)
        if self._stream is None:  # one: memory freed on a stream serves that stream alone
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            return write(copy, self._unwanted.is_set)


def prefetch_device(name: str, ranks: int) -> torch.device | None:
    """The device that ``draw_ahead`` names; None is that of each rank's policy.

    Raises:
        InputError: it is none, is not here, or several ``ranks`` would share it.
    """
    if name == "same":
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"`draw_ahead` is `same` or a device such as cuda:1; found {name!r}.") from error
    if ranks > 1:
        raise InputError(f"`draw_ahead` is {name!r}, and {ranks} ranks would all draw there. Say `same`.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"`draw_ahead` is {name!r}, and this process sees {counted(torch.cuda.device_count(), 'GPU')}. Say "
            f"`same`, or let it "
            "see more (CUDA_VISIBLE_DEVICES)."
        )
    return device
