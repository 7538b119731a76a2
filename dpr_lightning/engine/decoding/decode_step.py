"""One decoding step: read each row's last token, sample the next."""

from torch import Tensor

from dpr_lightning.engine.decoding.decode_batch import DecodeBatch
from dpr_lightning.engine.decoding.token_sampling import sample_tokens


class DecodeSteps:
    """Decoding steps of a batch, run operation by operation; ended rows are dropped at once.

    Args:
        batch: after prefill.
        temperature: as in :func:`sample_tokens`.
        top_p: as in :func:`sample_tokens`.
    """

    def __init__(self, batch: DecodeBatch, temperature: float, top_p: float) -> None:
        self._batch, self._temperature, self._top_p = batch, temperature, top_p

    def next(self, tokens: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Read one more token a row; the next tokens [B] and their log-probabilities [B], valid until the next call.

        Args:
            tokens: [B], the last of each row.
            uniform: [B] in [0, 1), float64, random numbers to sample the next with.
        """
        return self._sample(self._batch.step(tokens), uniform)

    def leaves_out(self, ended: int, rows: int) -> bool:
        """Whether it pays to drop the ``ended`` ones of ``rows`` rows."""
        return ended > 0

    def keep(self, order: Tensor) -> None:
        """Keep the rows ``order``, in that order."""
        self._batch.keep(order)

    def _sample(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return sample_tokens(logits, uniform, self._temperature, self._top_p)
