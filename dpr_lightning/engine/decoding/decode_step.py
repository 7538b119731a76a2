"""The next token of every row: read the last one, draw from what comes."""

from torch import Tensor

from dpr_lightning.engine.decoding.decode_batch import DecodeBatch
from dpr_lightning.engine.decoding.token_sampling import sample_tokens


class DecodeSteps:
    """One operation after the other; a row that ends is left out at once.

    Args:
        batch: that has read its prompts.
        temperature: as in :func:`draw`.
        top_p: the same.
    """

    def __init__(self, batch: DecodeBatch, temperature: float, top_p: float) -> None:
        self._batch, self._temperature, self._top_p = batch, temperature, top_p

    def next(self, chosen: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Read one more token a row; the next ones [B] and their log-probabilities [B], until they are asked again.

        Args:
            chosen: [B], the last ones.
            uniform: [B] in [0, 1), float64, that the next are drawn with.
        """
        return self._drawn(self._batch.step(chosen), uniform)

    def leaves_out(self, ended: int, rows: int) -> bool:
        """Whether it pays to leave out the rows that have ended, so many of all at hand."""
        return ended > 0

    def keep(self, order: Tensor) -> None:
        """Keep the rows ``order``, in that order."""
        self._batch.keep(order)

    def _drawn(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return sample_tokens(logits, uniform, self._temperature, self._top_p)
