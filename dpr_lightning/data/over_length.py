"""Refuses, drops or truncates rows that are too long, and counts them; no truncated row ends with a false EOS."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from dpr_lightning.data.notices import log_lines
from dpr_lightning.data.tokenization import TokenizedExample
from dpr_lightning.errors import InputError, counted

OverLength = Literal["error", "drop", "truncate"]


@dataclass
class TokenizationReport:
    """Counts of one tokenised file.

    ``rows`` read, ``kept``, ``dropped`` and ``truncated``; ``longest``: tokens of the longest row before any limit;
    ``tokens`` of the remaining rows, ``acted_tokens``: those to learn; ``limit``: the length limit, None without one;
    ``unknown_tokens``: those to learn that are `<unk>`, and ``unknown``: a sentence about them; ``notes``: further
    warnings, a sentence each.
    """

    source: str = ""
    rows: int = 0
    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    longest: int = 0
    tokens: int = 0
    acted_tokens: int = 0
    limit: int | None = None
    unknown_tokens: int = 0
    unknown: str = ""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        limit = "no limit" if self.limit is None else f"limit {self.limit:,}"
        return (
            f"{self.source}: {counted(self.rows, 'row')}, {self.kept:,} kept, {self.dropped:,} dropped, "
            f"{self.truncated:,} truncated; longest {counted(self.longest, 'token')} ({limit}); "
            f"{counted(self.tokens, 'token')}, {self.acted_tokens:,} of them to learn."
        )

    def check_unknown(self, share: float) -> None:
        """Refuse a file of which too many tokens are `<unk>`.

        Args:
            share: largest accepted share of the tokens to learn.

        Raises:
            InputError: names the characters and the first row.
        """
        if self.unknown_tokens > share * self.acted_tokens:
            raise InputError(
                f"{self.source}: {self.unknown} Take another tokenizer, replace those characters, or raise "
                f"`data.max_unknown`, the share that is accepted ({share:g})."
            )

    def log_notes(self) -> None:
        """Log the warnings."""
        log_lines(self.source, self.notes)

    def counts(self) -> dict[str, float]:
        """The numbers, for a logger."""
        return {name: float(value) for name, value in asdict(self).items() if isinstance(value, int)}

    def to_json(self) -> str:
        """JSON for the manifest of the token cache."""
        return json.dumps(asdict(self))


class LengthLimit:
    """Applies ``max_length`` (tokens, prompt included) row by row and counts.

    Args:
        max_length: the limit; None for none.
        policy: ``error`` refuses the file, after reading it whole so that the message can say how many rows are too
            long; ``drop`` leaves them out; ``truncate`` cuts their end, and the answer then counts as not terminated.
        source: name of the file, for messages.
    """

    def __init__(self, max_length: int | None, policy: OverLength, source: str) -> None:
        if policy not in get_args(OverLength):
            raise InputError(f"`over_length` is one of {', '.join(get_args(OverLength))}; found {policy!r}.")
        if max_length is not None and max_length < 2:
            raise InputError(f"`max_length` must be at least 2, a token of the prompt and its EOS; found {max_length}.")
        self.max_length = max_length
        self.policy = policy
        self.report = TokenizationReport(source=source, limit=max_length)
        self.too_long: list[tuple[str, int]] = []

    def apply(self, example: TokenizedExample, location: str, stop_ids: frozenset[int]) -> TokenizedExample | None:
        """Count an example; return it unchanged, truncated, or None where it is dropped.

        Raises:
            InputError: truncation leaves no token of the completion.
        """
        report, length = self.report, len(example.tokens)
        report.rows += 1
        report.longest = max(report.longest, length)
        if self.max_length is not None and length > self.max_length:
            if self.policy != "truncate":
                self.too_long.append((location, length))
                report.dropped += 1
                return None
            example = _cut(example, self.max_length, location, stop_ids)
            report.truncated += 1
        report.kept += 1
        report.tokens += len(example.tokens)
        report.acted_tokens += sum(example.mask)
        return example

    def finish(self) -> TokenizationReport:
        """The counts of the whole file; called after its last row.

        Raises:
            InputError: rows are too long and the policy is ``error``, or no row is left.
        """
        if self.too_long and self.policy == "error":
            raise InputError(over_length_message(self.too_long, self.report.rows, "max_length", self.max_length or 0))
        if self.report.kept == 0:
            why = "it has no rows"
            if self.too_long:
                shortest = min(length for _, length in self.too_long)
                why = (
                    f"all {counted(self.report.rows, 'row')} are longer than `max_length`, {self.max_length:,} tokens; "
                    f"the shortest has {shortest:,}. Raise `data.max_length` (`--max_length` of `dpr sft`)"
                )
            raise InputError(f"No row of {self.report.source} is left: {why}.")
        return self.report


def over_length_message(too_long: list[tuple[str, int]], rows: int, option: str, limit: int) -> str:
    """The error message for rows longer than a limit."""
    named = ", ".join(f"{location} ({length:,} tokens)" for location, length in too_long[:3])
    longest = max(length for _, length in too_long)
    choices = "`over_length: drop`" if option != "max_length" else "`over_length: drop` or `over_length: truncate`"
    return (
        f"{len(too_long):,} of {rows:,} rows are longer than {option}={limit:,} tokens, the longest {longest:,}: "
        f"{named}{' …' if len(too_long) > 3 else ''}. Raise `{option}`, or choose {choices}."
    )


def _cut(example: TokenizedExample, max_length: int, location: str, stop_ids: frozenset[int]) -> TokenizedExample:
    mask = example.mask[:max_length]
    if not any(mask):
        raise InputError(
            f"{location}: cut at max_length={max_length:,} tokens nothing of the completion is left, for the prompt "
            f"alone has {example.mask.index(True):,}. Raise `max_length`, or use `over_length: drop`."
        )
    end = len(mask) - mask[::-1].index(True)
    # With several turns the cut may fall between two of them; the remaining tokens then end with a real EOS.
    weights = None if example.weights is None else example.weights[:end]
    return TokenizedExample(example.tokens[:end], mask[:end], example.tokens[end - 1] in stop_ids, weights)
