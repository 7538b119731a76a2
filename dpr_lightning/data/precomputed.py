"""Rollouts of π_SFT that are sampled once and saved."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dpr_lightning.batch_axes import row_tensors
from dpr_lightning.distributed import max_over_ranks
from dpr_lightning.locking import only_one
from dpr_lightning.rewards.cache import load_cached, store_cached
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch

log = logging.getLogger(__name__)


def saved_rollouts(
    folder: str, key: Mapping[str, Any], compute: Callable[[], RolloutBatch], *, writes: bool
) -> RolloutBatch:
    """The rollouts in ``folder``, computed and saved if there are none. Every rank computes the same; one saves.

    Args:
        folder: of the saved rollouts.
        key: everything that they depend on; rollouts saved with another key are refused.
        compute: samples and scores them.
        writes: whether this rank is the one that saves. All ranks must call this.
    """
    with only_one(Path(folder)) if writes else nullcontext():
        max_over_ranks(0)  # no rank reads before the first one may write: then all read the same
        tensors: dict[str, Any] | None = load_cached(folder, dict(key))
        if tensors is None:
            tensors = row_tensors(compute())
            if writes:
                store_cached(folder, dict(key), tensors)
        else:
            log.info("Using the rollouts saved in %s.", folder)
    return RolloutBatch(**tensors, num_tokens=tensors["mask"].sum().float())


def hash_of_prompts(prompts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the token ids of all prompts."""
    return hashlib.sha256(json.dumps([list(map(int, prompt)) for prompt in prompts]).encode()).hexdigest()


def hashed_options(sampling: SamplingOptions) -> dict[str, Any]:
    """The options that samples depend on; stop strings only if there are some, so that older saved rollouts match."""
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    return options | ({"stop_strings": list(sampling.stop_strings)} if sampling.stop_strings else {})
