"""The passes of sampling that need the most memory, run without those between them."""

from collections.abc import Sequence

import torch
from torch import nn

from dpr_lightning.engine import Lockstep, evaluating, model_device
from dpr_lightning.engine.decoding import sample_tokens, single_model
from dpr_lightning.engine.decoding.cached_state import CachedState
from dpr_lightning.engine.decoding.decode_batch import DecodeBatch
from dpr_lightning.engine.decoding.routes import Decoder
from dpr_lightning.rollouts.sampler import SamplingOptions, prompts_at_once


@torch.no_grad()
def decode_longest(
    policy: nn.Module, prompts: Sequence[Sequence[int]], options: SamplingOptions, num_samples: int
) -> None:
    """Called where memory is counted: as :func:`dpr_lightning.rollouts.sample` for its first batch, if no answer ends.

    The prompts are prefilled, and the first and the last token of the answers sampled. The steps between are left out
    where the cache is preallocated: it is only made longer.

    Args:
        policy: with content or without.
        prompts: token ids, all equally long.
        options: length limit, batch size and the like.
        num_samples: answers to each prompt.
    """
    with evaluating([policy]):
        decoder, limit = Decoder(policy), options.max_new_tokens
        batch_prompts = prompts[: prompts_at_once([decoder], options, num_samples, len(prompts[0]) + limit)]
        state, device = decoder.new_state(limit), model_device(policy)
        batch = DecodeBatch([state], single_model, 0, device, Lockstep([policy]))
        logits = batch.prefill(batch_prompts, num_samples)
        uniform = torch.zeros(len(logits), dtype=torch.float64, device=device)
        token, _ = sample_tokens(logits, uniform, options.temperature, options.top_p)
        del logits
        # A cache that grows is copied, so it does so twice; the first step may create it.
        rest = max(0, limit - 4)
        for left_out in (0, rest // 2, rest - rest // 2)[: limit - 1]:
            if left_out and not (isinstance(state, CachedState) and state.advance(left_out)):
                for _ in range(left_out):
                    state.step(token)
            token, _ = sample_tokens(batch.step(token), uniform, options.temperature, options.top_p)
