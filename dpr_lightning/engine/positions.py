"""How many positions a model has, and whether rows fit: a table ends, rotary embeddings go on untrained."""

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from transformers import PreTrainedModel

from dpr_lightning.engine.known_decoders import inside_of_adapters
from dpr_lightning.engine.model_mode import evaluating, model_device
from dpr_lightning.engine.weight_shards import fetches_weights
from dpr_lightning.errors import InputError
from dpr_lightning.model_options import ModelOptions

log = logging.getLogger(__name__)
_TRIED = 8192
"""Positions up to which a model is tried past its end; longer ones are rotary in practice."""
_limits: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()
_ends: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_warned: WeakSet[nn.Module] = WeakSet()


def positions_of(model: nn.Module) -> int | None:
    """Tokens of the longest row that ``model`` was configured for; None where its configuration has no number."""
    single: Any = inside_of_adapters(model)
    if single not in _limits:
        _limits[single] = _limit(single)
    return _limits[single]


def _limit(single: Any) -> int | None:
    if not isinstance(single, PreTrainedModel):
        return None  # not a module of transformers: unknown
    limit = ModelOptions.of_text(single.config).positions
    table = _table(single)
    if table is not None:
        # OPT skips the first rows of the table, by an attribute of its class; RoBERTa starts after the padding row.
        skipped = getattr(table, "offset", 0) or (0 if table.padding_idx is None else table.padding_idx + 1)
        rows = table.num_embeddings - int(skipped)
        limit = rows if limit is None else min(limit, rows)
    return limit if limit is None or limit > 0 else None


def check_positions(model: nn.Module, tokens: int, what: str, remedy: Callable[[int], str]) -> None:
    """Compare a row's length with the positions of ``model``.

    Args:
        model: of transformers, possibly with adapters.
        tokens: of the longest row.
        what: that row and its parts, as the subject of a sentence.
        remedy: from the number of positions to a sentence about how to shorten rows.

    Raises:
        InputError: the row has more tokens than the model has positions. For a model that can go past the positions
            that it was trained on, this is a warning, once a model.
    """
    limit = positions_of(model)
    if limit is None or tokens <= limit:
        return
    kind = inside_of_adapters(model).config.model_type
    if ends_at(model, limit):
        raise InputError(f"{what}, and the model ({kind}) has {limit:,} positions and no more. {remedy(limit)}")
    if model not in _warned:
        _warned.add(model)
        log.warning(
            "%s, and the model (%s) is configured for %s positions. It goes on past them, but was not trained there.",
            what,
            kind,
            f"{limit:,}",
        )


def longest_row(model: nn.Module, tokens: int) -> int:
    """The number of ``tokens``, or of the model's positions if those are fewer and it cannot go past them."""
    limit = positions_of(model)
    return tokens if limit is None or tokens <= limit or not ends_at(model, limit) else limit


def ends_at(model: nn.Module, limit: int) -> bool:
    """Whether ``model`` cannot read more than ``limit`` tokens; tried on the model where its kind is not enough.

    Sharded weights are not tried, nor weights on a GPU, where an index past the end of a table would end the process.
    """
    single: Any = inside_of_adapters(model)
    if _table(single) is not None:
        return True
    rotary = ModelOptions.of_text(single.config).is_rotary
    if rotary or limit > _TRIED or fetches_weights(model) or model_device(model).type != "cpu":
        return False
    if single not in _ends:
        _ends[single] = _fails_past(single, limit)
    return _ends[single]


@torch.no_grad()
def _fails_past(model: Any, limit: int) -> bool:
    tokens = torch.zeros(1, limit + 1, dtype=torch.long)
    try:
        with evaluating([model]):
            model(input_ids=tokens, use_cache=False)
    except (IndexError, RuntimeError, ValueError):
        return True
    return False


def _table(model: Any) -> nn.Embedding | None:
    """The position embedding of a model with a table; None without."""
    for name, module in model.get_decoder().named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (last == "wpe" or "position" in last):
            return module
    return None
