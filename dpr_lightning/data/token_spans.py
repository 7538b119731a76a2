"""From suspicious tokens of a row to the characters that they cover, as the row's ``loss_spans``."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dpr_lightning.data.conversations import Example
from dpr_lightning.data.loss_spans import LossSpan, content_start, runs, token_span
from dpr_lightning.data.tokenization import TokenizedExample


def spans_of_tokens(
    example: Example, row: TokenizedExample, flagged: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[LossSpan, range]]:
    """The characters of flagged tokens, a span for each run of them in one turn.

    Tokens outside the content of their turn (its end, reasoning, tool calls, what a template writes) have no span, and
    neither has a turn whose tokens decode to another text than its content.

    Args:
        example: the row as it is read.
        row: its tokens, all of them learnt (``weighted=False``).
        flagged: of each token to learn, in order.
        tokenizer: of the policy.

    Returns:
        each span, with the indices of its tokens among the actions of the row.
    """
    contents = example.learnt_contents
    spans: list[tuple[LossSpan, range]] = []
    action = 0
    for turn, (start, end) in enumerate(runs(row.mask)):
        tokens, content = row.tokens[start:end], contents[turn]
        of_turn = flagged[action : action + len(tokens)]
        before, action = action, action + len(tokens)
        if not any(of_turn):
            continue
        first = content_start(tokenizer, tokens, content)
        if first is None:
            continue
        for left, right in runs(of_turn):
            covered = token_span(tokenizer, tokens, first, content, left, right)
            if covered is not None:
                last = turn == len(contents) - 1
                span = LossSpan(*covered, 0.0, -1 if last else turn, content[slice(*covered)])
                spans.append((span, range(before + left, before + right)))
    return spans
