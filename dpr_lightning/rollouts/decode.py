"""What was sampled, as text."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dpr_lightning.policies import SpecialTokens


def decode_answers(
    tokens: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens
) -> list[str]:
    """The text of each answer, for verifiers, judges, tables and pages alike: all but stops and padding at its end.

    Special tokens inside an answer, such as reasoning tags, are text of it.

    Args:
        tokens: [B, L] token ids.
        mask: [B, L] True where the policy acted.
        tokenizer: of the policy.
        special: its special tokens.
    """
    ending = {*special.stops, special.pad}
    texts = []
    for row, acted in zip(tokens, mask, strict=True):
        answer = row[acted].tolist()
        while answer and answer[-1] in ending:
            answer.pop()
        texts.append(decode_tokens(tokenizer, answer))
    return texts


def decode_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of token ids, special ones included, with no space added, none left out and none tidied up."""
    return str(
        tokenizer.decode(
            list(tokens),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )
    )
