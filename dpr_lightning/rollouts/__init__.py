"""From prompts to sampled tokens, masks and behaviour log-probabilities."""

from dpr_lightning.rollouts.ahead import DrawsAhead, device_to_draw_on
from dpr_lightning.rollouts.decode import decode_answers, decode_tokens
from dpr_lightning.rollouts.other_sampler import OtherSampler
from dpr_lightning.rollouts.random import counter_uniform, sample_keys
from dpr_lightning.rollouts.sampler import SamplingOptions, sample
from dpr_lightning.rollouts.vllm_sampler import VllmSampler

__all__ = [
    "DrawsAhead",
    "OtherSampler",
    "SamplingOptions",
    "VllmSampler",
    "counter_uniform",
    "decode_answers",
    "decode_tokens",
    "device_to_draw_on",
    "sample",
    "sample_keys",
]
