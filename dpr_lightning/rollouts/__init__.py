"""From prompts to sampled tokens, masks and behaviour log-probabilities."""

from dpr_lightning.rollouts.decode import decode_answers, decode_tokens
from dpr_lightning.rollouts.external_sampler import ExternalSampler
from dpr_lightning.rollouts.longest_answers import decode_longest
from dpr_lightning.rollouts.prefetch import RolloutPrefetcher, prefetch_device
from dpr_lightning.rollouts.random import counter_uniform, sample_keys
from dpr_lightning.rollouts.sampler import SamplingOptions, sample
from dpr_lightning.rollouts.vllm_sampler import VllmSampler

__all__ = [
    "ExternalSampler",
    "RolloutPrefetcher",
    "SamplingOptions",
    "VllmSampler",
    "counter_uniform",
    "decode_answers",
    "decode_longest",
    "decode_tokens",
    "prefetch_device",
    "sample",
    "sample_keys",
]
