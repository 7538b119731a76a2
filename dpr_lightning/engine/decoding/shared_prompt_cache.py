"""Keys and values of prompts, kept once for all the rows that answer them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dpr_lightning.engine.kernels.decoding_kernels import LayerPromptCache


class SharedPromptCache:
    """What the layers of a decoder keep of G prompts, for B rows that answer them.

    The queries of the rows that answer a prompt meet its keys in one product: these are read once for all of them, and
    no row has a copy. A row that ends is left out; prompts that nobody answers any more go when they are half of all.

    Args:
        layers: keys and values [G, heads, P, width] of each layer, contiguous.
        seen: [G, P], False where a prompt has no token; None: nowhere.
        samples: rows that answer each prompt; they lie next to each other.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], seen: Tensor | None, samples: int) -> None:
        self._layers = list(layers)
        self._samples = samples
        keys = layers[0][0]
        self._prompt = torch.arange(len(keys), device=keys.device).repeat_interleave(samples)
        self._place: Tensor | None = None  # of the rows among G × samples, once they are not all of them, in order
        self._bias = None if seen is None else torch.zeros(seen.shape, dtype=torch.float32, device=keys.device)
        if self._bias is not None and seen is not None:
            self._bias.masked_fill_(~seen, float("-inf"))
        self._order = torch.arange(len(self._prompt), device=keys.device)

    def scores(self, layer: int, query: Tensor) -> Tensor:
        """Products [B, heads, n, P] of queries [B, heads, n, width] with the keys of a layer; −∞ where no token is."""
        keys = self._layers[layer][0]
        found = torch.bmm(self._together(query), keys.flatten(0, 1).transpose(1, 2))
        if self._bias is not None:
            found.view(*keys.shape[:2], -1, keys.shape[2]).add_(self._bias[:, None, None])
        return self._apart(found, query)

    def mixed(self, layer: int, weight: Tensor) -> Tensor:
        """Values of a layer, mixed [B, heads, n, width] by ``weight`` [B, heads, n, P]."""
        values = self._layers[layer][1]
        return self._apart(torch.bmm(self._together(weight), values.flatten(0, 1)), weight)

    def of_layer(self, layer: int) -> LayerPromptCache:
        """All of it, for :func:`dpr_lightning.engine.kernels.attend`."""
        return LayerPromptCache(*self._layers[layer], self._bias, self._prompt, self._order)

    def keep(self, order: Tensor) -> None:
        """Keep the rows ``order``, in that order."""
        self._prompt = self._prompt[order]
        count = torch.bincount(self._prompt, minlength=len(self._layers[0][0]))
        answered = count.nonzero().squeeze(1)
        if 2 * len(answered) <= len(count):
            for layer, (keys, values) in enumerate(self._layers):
                self._layers[layer] = keys[answered], values[answered]
            if self._bias is not None:
                self._bias = self._bias[answered]
            number = torch.empty_like(count)
            number[answered] = torch.arange(len(answered), device=count.device)
            self._prompt, count = number[self._prompt], count[answered]
        self._samples = int(count.max())
        # The how manieth of its prompt a row is.
        self._order = ordered = self._prompt.argsort(stable=True)
        which = torch.empty_like(ordered)
        first = (count.cumsum(0) - count)[self._prompt[ordered]]
        which[ordered] = torch.arange(len(ordered), device=ordered.device) - first
        self._place = self._prompt * self._samples + which

    def _together(self, part: Tensor) -> Tensor:
        """[B, heads, n, m] as [G·heads, samples·n, m]: rows of a prompt in one product, zeros where there is none."""
        if self._place is not None:
            spread = part.new_zeros(len(self._layers[0][0]) * self._samples, *part.shape[1:])
            part = spread.index_copy_(0, self._place, part)
        _, heads, each, width = part.shape
        return part.view(-1, self._samples, heads, each, width).transpose(1, 2).reshape(-1, self._samples * each, width)

    def _apart(self, part: Tensor, rows: Tensor) -> Tensor:
        """What :meth:`_together` put together of ``rows`` [B, heads, n, ·], as [B, heads, n, m] again."""
        _, heads, each, _ = rows.shape
        split = part.view(-1, heads, self._samples, each, part.shape[-1]).transpose(1, 2)
        rows_of_all = split.reshape(-1, heads, each, part.shape[-1])
        return rows_of_all if self._place is None else rows_of_all.index_select(0, self._place)
