"""Rollouts of π_SFT that are made once and kept."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from dpr_lightning.distributed import max_over_ranks
from dpr_lightning.locking import only_one
from dpr_lightning.rewards.cache import load_cached, store_cached
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch

log = logging.getLogger(__name__)
KEPT = (
    "tokens", "mask", "terminated", "prompt", "behaviour_logprob", "sft_logprob", "reference_logprob", "reward",
    "advantage",
)  # fmt: skip
"""What a precomputed rollout keeps."""


def kept_rollouts(
    folder: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]], *, writes: bool
) -> RolloutBatch:
    """The rollouts in ``folder``, made where there are none. Several ranks each make the same ones; one writes them.

    Args:
        folder: that keeps them.
        key: all that they depend on; those of another are refused.
        make: the tensors of :data:`KEPT`.
        writes: whether this rank is the one. All ranks must take part.
    """
    with only_one(Path(folder)) if writes else nullcontext():
        max_over_ranks(0)  # no rank looks before the first one may write: then all find the same
        kept = load_cached(folder, dict(key))
        if kept is None:
            kept = make()
            if writes:
                store_cached(folder, dict(key), kept)
        else:
            log.info("Using the rollouts kept in %s.", folder)
    parts: dict[str, Any] = {name: kept[name] for name in KEPT}
    return RolloutBatch(**parts, num_tokens=kept["mask"].sum().float())


def hash_of_prompts(prompts: Sequence[Sequence[int]]) -> str:
    """Of the token ids of all prompts."""
    return hashlib.sha256(json.dumps([list(map(int, prompt)) for prompt in prompts]).encode()).hexdigest()


def hashed_options(sampling: SamplingOptions) -> dict[str, Any]:
    """What samples depend on; stop strings only where there are some, so that older rollouts stay what they are."""
    found: dict[str, Any] = {name: getattr(sampling, name) for name in ("max_new_tokens", "temperature", "top_p")}
    return found | ({"stop_strings": list(sampling.stop_strings)} if sampling.stop_strings else {})
