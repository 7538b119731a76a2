"""From prompts to sampled tokens, masks and behaviour log-probabilities."""

from dpr_lightning.rollouts.decode import decode_answers
from dpr_lightning.rollouts.random import counter_uniform, sample_keys
from dpr_lightning.rollouts.sampler import Combine, SamplingOptions, draw, only, sample

__all__ = ["Combine", "SamplingOptions", "counter_uniform", "decode_answers", "draw", "only", "sample", "sample_keys"]
