"""Inputs of a forward pass over rows: padded, packed, or after prompts that are read once."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpr_lightning.engine.known_decoders import attention_of, inside_of_adapters, is_known_decoder
from dpr_lightning.engine.model_mode import evaluating
from dpr_lightning.engine.positions import check_positions
from dpr_lightning.engine.shared_prompts import with_shared_prompts
from dpr_lightning.engine.weight_shards import fetches_weights
from dpr_lightning.model_options import ModelOptions

log = logging.getLogger(__name__)
Inputs = dict[str, Any]
"""Keyword arguments of a forward pass."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers that restart where positions do. Convolutions and recurrent states would leak from row to row."""
_apart: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether packed rows of a model were tried and are independent."""


def packs_rows(model: nn.Module) -> bool:
    """Whether rows go through ``model`` packed into one long row, so that no padding is computed.

    With flash attention, where every layer is attention that separates rows by their positions, which is tried once for
    unknown decoders.
    """
    attention, single = str(attention_of(model)), inside_of_adapters(model)
    if "flash" not in attention:
        return False
    options = ModelOptions.of_text(single.config)
    if single._is_stateful or not options.layers <= ATTENTION_LAYERS:
        return False
    if is_known_decoder(model) or fetches_weights(model):
        return True
    if model not in _apart:
        _apart[model] = _keeps_rows_apart(model)
        if not _apart[model]:
            log.warning(
                "The %s attention of this %s does not see where a packed row ends; its rows are padded instead.",
                attention,
                options.config.model_type,
            )
    return _apart[model]


@torch.no_grad()
def _keeps_rows_apart(model: nn.Module) -> bool:
    """Whether a row packed after another one has the logits that it has alone, by passes over a few tokens."""
    model_: Any = model
    vocabulary = model_.config.get_text_config().vocab_size
    tokens = torch.arange(5, 11, device=next(model.parameters()).device).unsqueeze(0) % vocabulary
    position = torch.arange(3, device=tokens.device).repeat(2).unsqueeze(0)
    with evaluating([model]):
        together = model_(input_ids=tokens, position_ids=position, use_cache=False).logits[0, 3:].float()
        alone = model_(input_ids=tokens[:, 3:], use_cache=False).logits[0].float()
    spread = (alone - alone.mean(-1, keepdim=True)).abs().amax()
    return bool((together - alone).abs().amax() <= 5e-2 * spread + 1e-6)


def model_inputs(model: nn.Module, tokens: Tensor, mask: Tensor, *, sampled: bool = False) -> tuple[Inputs, Tensor]:
    """Inputs of a forward pass, and where each row starts in its output, [B], counted through all rows.

    Args:
        model: of the forward pass.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        sampled: whether several rows may answer one prompt, which is then read once where that takes fewer tokens.
    """
    longest = tokens.shape[1]
    check_positions(model, longest, f"A row has {longest:,} tokens", lambda limit: f"Leave out what exceeds {limit:,}.")
    if not packs_rows(model):
        shared = with_shared_prompts(model, tokens, mask) if sampled else None
        if shared is not None:
            return shared
        return {"input_ids": tokens, "use_cache": False}, torch.arange(len(tokens), device=tokens.device) * longest
    columns = torch.arange(longest, device=tokens.device)
    length = (mask * (columns + 1)).amax(1).clamp_min(1)
    is_token = columns < length.unsqueeze(1)
    # transformers separates packed rows where positions restart at 0.
    position = columns.expand_as(tokens)[is_token].unsqueeze(0)
    inputs = {"input_ids": tokens[is_token].unsqueeze(0), "position_ids": position, "use_cache": False}
    return inputs, length.cumsum(0) - length
