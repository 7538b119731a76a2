"""What was sampled, as text."""

from torch import Tensor
from transformers import PreTrainedTokenizerBase


def decode_answers(tokens: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each answer: of the acted tokens [B, L], special ones left out."""
    acted = [row[held].tolist() for row, held in zip(tokens, mask, strict=True)]
    return [str(text) for text in tokenizer.batch_decode(acted, skip_special_tokens=True)]
