"""From prompts to sampled tokens, masks and behaviour log-probabilities."""

from dpr_lightning.rollouts.ahead import DrawsAhead, device_to_draw_on
from dpr_lightning.rollouts.batch import Combine, only
from dpr_lightning.rollouts.decode import decode_answers, decode_tokens
from dpr_lightning.rollouts.drawing import draw
from dpr_lightning.rollouts.one_token import laid_out_bytes
from dpr_lightning.rollouts.other_sampler import OtherSampler
from dpr_lightning.rollouts.random import counter_uniform, sample_keys
from dpr_lightning.rollouts.routes import sampling_route
from dpr_lightning.rollouts.sampler import SamplingOptions, sample
from dpr_lightning.rollouts.vllm_sampler import VllmSampler

__all__ = [
    "Combine",
    "DrawsAhead",
    "OtherSampler",
    "SamplingOptions",
    "VllmSampler",
    "counter_uniform",
    "decode_answers",
    "decode_tokens",
    "device_to_draw_on",
    "draw",
    "laid_out_bytes",
    "only",
    "sample",
    "sample_keys",
    "sampling_route",
]
