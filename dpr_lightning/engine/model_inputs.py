"""What a model is given for some rows: side by side, end to end, or behind prompts that are read once."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpr_lightning.engine.known_decoders import is_known_decoder
from dpr_lightning.engine.positions import check_positions
from dpr_lightning.engine.shared_prompts import with_shared_prompts
from dpr_lightning.engine.varlen_attention import VARLEN, varlen_inputs
from dpr_lightning.engine.weight_shards import fetches_weights

log = logging.getLogger(__name__)
Inputs = dict[str, Any]
"""Keyword arguments of a forward pass."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers that start anew where positions do. Convolutions and recurrent states would leak from row to row."""
_apart: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether rows of a model that are end to end were seen to be independent."""


def packs_rows(model: nn.Module) -> bool:
    """Whether rows go through ``model`` end to end in one long row: where its attention then skips padding.

    Under flash attention, where every layer is attention that sees from the positions where a row ends, which is tried
    once for decoders whose insides are not known; under `varlen` in those that are.
    """
    attention = str(getattr(model.config, "_attn_implementation", None))
    if attention == VARLEN:
        return is_known_decoder(model)
    if "flash" not in attention:
        return False
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    layers = set(getattr(config, "layer_types", None) or ()) | set(getattr(config, "layers_block_type", None) or ())
    if getattr(model, "_is_stateful", False) or not layers <= ATTENTION_LAYERS:
        return False
    if is_known_decoder(model) or fetches_weights(model):
        return True
    if model not in _apart:
        _apart[model] = _keeps_rows_apart(model)
        if not _apart[model]:
            log.warning(
                "The %s attention of this %s does not see where a packed row ends; its rows are padded instead.",
                attention,
                config.model_type,
            )
    return _apart[model]


@torch.no_grad()
def _keeps_rows_apart(model: nn.Module) -> bool:
    """Whether a row behind another one gives the logits that it gives alone, by forward passes over a few tokens."""
    model_: Any = model
    vocabulary = model_.config.get_text_config().vocab_size
    tokens = torch.arange(5, 11, device=next(model.parameters()).device).unsqueeze(0) % vocabulary
    training = model.training
    model.eval()
    try:
        position = torch.arange(3, device=tokens.device).repeat(2).unsqueeze(0)
        together = model_(input_ids=tokens, position_ids=position, use_cache=False).logits[0, 3:].float()
        alone = model_(input_ids=tokens[:, 3:], use_cache=False).logits[0].float()
    finally:
        model.train(training)
    spread = (alone - alone.mean(-1, keepdim=True)).abs().amax()
    return bool((together - alone).abs().amax() <= 5e-2 * spread + 1e-6)


def model_inputs(
    model: nn.Module, tokens: Tensor, mask: Tensor, packed: bool | None, *, sampled: bool = False
) -> tuple[Inputs, Tensor]:
    """What the model is given, and where each row begins in what comes out, counted through all of its rows, [B].

    Args:
        model: that will be given it.
        tokens: [B, L] right-padded.
        mask: [B, L] True where the policy acted.
        packed: rows end to end in one; None: where :func:`packs_rows` says so.
        sampled: whether several rows may answer one prompt, which is then read once where that is less to read.
    """
    longest = tokens.shape[1]
    check_positions(model, longest, f"A row has {longest:,} tokens", lambda limit: f"Leave out what exceeds {limit:,}.")
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    if not (packs_rows(model) if packed is None else packed):
        found = with_shared_prompts(model, tokens, mask) if sampled else None
        if found is not None:
            return found
        start = torch.arange(len(tokens), device=tokens.device) * tokens.shape[1]
        return {"input_ids": tokens, "use_cache": False}, start
    length = (mask * (columns + 1)).amax(1).clamp_min(1)
    kept = columns < length.unsqueeze(1)
    # Positions that begin again at 0 are what tells transformers where a row ends and the next begins.
    position = columns.expand_as(tokens)[kept].unsqueeze(0)
    inputs = {"input_ids": tokens[kept].unsqueeze(0), "position_ids": position, "use_cache": False}
    start = length.cumsum(0) - length
    if getattr(model.config, "_attn_implementation", None) == VARLEN and is_known_decoder(model):
        inputs |= varlen_inputs(start, position.shape[1], int(length.max()))
    return inputs, start
